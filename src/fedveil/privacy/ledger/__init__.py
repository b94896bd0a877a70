"""A site's durable record of its releases, and the budget that limits them."""

__all__: list[str] = []
