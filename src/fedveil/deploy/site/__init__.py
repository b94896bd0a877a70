"""The hospital's side: the service that holds images, ledger and keys."""
