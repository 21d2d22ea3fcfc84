"""Which fleet serves a demand under a power budget, and how sure that is."""
