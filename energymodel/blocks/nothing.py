"""What most blocks leave out: a cache that grows with the context, a state of fixed size."""


class CachesNothing:
    """A block whose tokens leave no keys and values behind."""

    __slots__ = ()

    def kv_bytes_per_token(self, _element_bytes: float) -> float:
        """Nothing is cached."""
        return 0.0


class KeepsNothing:
    """A block that keeps nothing of a sequence but what it caches for each token."""

    __slots__ = ()

    def state_bytes(self, _element_bytes: float) -> float:
        """Nothing is kept."""
        return 0.0
