"""`fedveil audit`: what attacks find, beside what is stated."""
