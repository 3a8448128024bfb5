// Answers policy questions with @cloud-copilot/iam-simulate: one line of JSON in, one line out.

import { createInterface } from 'node:readline'
import { runSimulation } from '@cloud-copilot/iam-simulate'

for await (const line of createInterface({ input: process.stdin })) {
  const answers = await Promise.all(JSON.parse(line).map(decide))
  console.log(JSON.stringify(answers))
}

// 'Allowed', 'ImplicitlyDenied' or 'ExplicitlyDenied'; what is wrong with a request that AWS
// could not get: an action that does not exist, an ARN or condition key that it does not know.
async function decide({ principal, action, resource, context, identity_policy, resource_policy }) {
  const accountId = '123456789012'
  const result = await runSimulation(
    {
      request: { principal, action, resource: { resource, accountId }, contextVariables: context },
      identityPolicies: identity_policy ? [{ name: 'identity', policy: identity_policy }] : [],
      resourcePolicy: resource_policy ?? undefined,
      serviceControlPolicies: [],
      resourceControlPolicies: [],
    },
    {},
  )
  if (result.resultType === 'error') return `error: ${JSON.stringify(result.errors)}`
  const parts = result.resultType === 'single' ? [result.result] : result.results
  const unknown = parts.flatMap((part) => part.ignoredContextKeys ?? [])
  return unknown.length ? `error: not known to ${action}: ${unknown}` : result.overallResult
}
