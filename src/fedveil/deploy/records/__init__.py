"""What a hospital can show afterwards: decisions, statements, its state; and whose files they are."""

__all__: list[str] = []
