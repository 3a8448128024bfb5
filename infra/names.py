"""The tags that split the bill: which project, which part of it. Imports no CDK."""

PROJECT = "bin-counter"
PROJECT_KEY = "project"
PART_KEY = "part"  # data, budget, training, endpoint
COST_ALLOCATION_KEYS = (PROJECT_KEY, PART_KEY)
