"""What SageMaker's container starts, at the root of the packed code.

Its arguments are all hyperparameters, SageMaker's own among them, in a form that argparse does
not know: they are left aside, and training.train gets those of SM_HPS that are ours.
"""

import os
import sys

from training.sagemaker.environment import sagemaker_defaults
from training.settings import as_flags
from training.train import main

if __name__ == "__main__":
    sys.argv[1:] = as_flags(sagemaker_defaults(os.environ))
    main()
