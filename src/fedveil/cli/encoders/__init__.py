"""Commands for encoders that are not built in, and the option that says where encoders run."""
