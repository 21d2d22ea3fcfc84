"""Request traces: who asked when for how many tokens, and what bins make of it.

``read_trace`` reads a file to arrays; ``lengths`` counts requests by length, here or in the engine
where a trace lives; ``binning`` makes bins of the counts and ``distortion`` says what they change.
"""

from energymodel.traces.formats import Columns
from energymodel.traces.reader import read_trace
from energymodel.traces.trace import Limits, Trace, served

__all__ = ["Columns", "Limits", "Trace", "read_trace", "served"]
