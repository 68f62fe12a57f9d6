"""What every test has: the process settings of a real run, before anything imports Paddle."""

from erniekit.runtime import prepare_environment

prepare_environment()
