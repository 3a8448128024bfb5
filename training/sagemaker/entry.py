"""Entry script of a SageMaker job, at the root of the packed code.

SageMaker passes all hyperparameters as arguments, including its own, which training.train does not
accept. So this script replaces them with the flags for training.train.
"""

import os
import sys

from training.flags import as_flags
from training.sagemaker.environment import sagemaker_defaults
from training.train import main

if __name__ == "__main__":
    sys.argv[1:] = as_flags(sagemaker_defaults(os.environ))
    main()
