"""A site's durable record of what it released, and the budget that limits it."""

__all__: list[str] = []
