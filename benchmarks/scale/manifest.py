"""The manifest of a split whose shards were never packed: its argument is the working folder.

A step of benchmarks.scale, in a process that imports nothing else.
"""

import sys
from pathlib import Path

from data_prep.folder import dataset_path
from data_prep.pack import Part, Shard, join, plan_shards
from data_prep.split import read_split

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    split = read_split(folder)
    parts = [
        Part("", Shard(plan.file, len(plan.photos), 100_000_000, "0" * 64), {})
        for plan in plan_shards(split, 224, 100.0)
    ]
    dataset = dataset_path(folder, "bins")
    dataset.mkdir(parents=True)
    join(dataset, split, parts, size=224, shard_mb=100.0, min_photos=1)
