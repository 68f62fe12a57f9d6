"""What the server that test processes are forked from imports once: Paddle and transformers take seconds."""

import os

from erniekit.runtime import prepare_environment

os.environ["GLOG_minloglevel"] = "2"  # noqa: SIM112, as glog calls it
prepare_environment()

import av  # noqa: F401
from PIL import Image
from transformers import PreTrainedTokenizerFast  # noqa: F401

import tests.distributed.checks
import tests.distributed.context_checks
import tests.distributed.expert_checks
import tests.distributed.image_checks
import tests.distributed.layouts
import tests.distributed.shard_checks  # noqa: F401

Image.init()
