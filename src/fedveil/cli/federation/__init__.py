"""The coordinator's commands around studies: a standing SuperLink, what goes on, keys."""
