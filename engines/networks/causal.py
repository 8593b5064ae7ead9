"""A bidirectional network in its causal form, with the same weights: a start for fine-tuning on live streams.
No paper defines a causal form; each rule answers two questions, and measured accuracy has to choose.
Which taps: a convolution over frames t-1, t, t+1 (the gate's, and GSF's fuse convolution)
    moved     keeps all its weights and looks at t-2, t-1, t;
    dropped   keeps the weights of t-1 and t in their places; that of t+1 is dropped, and t-2 starts at zero.
Which past: the channels that were shifted from t+1
    two, one  come from so many frames back;
    stay      come from their own frame.
The other channels come from t-1 as they did. TSM and STSM have no weights, so there the second word alone counts."""

import copy

from engines.errors import UsageError
from engines.networks.network import Network
from engines.networks.temporal import TemporalModule

RULES = {f"{taps}-{past}": (taps == "dropped", past_shift)
         for taps in ("moved", "dropped") for past, past_shift in (("two", 2), ("one", 1), ("stay", 0))}
DEFAULT_RULE = "dropped-one"


def causal(network: Network, rule: str) -> Network:
    """A causal copy of a bidirectional `network`, which stays as it is.
    `build(..., causal=True, past_shift=2, 1 or 0)`, by the rule's second word, makes a network that takes its weights.
    Raises UsageError for an unknown rule and for a network that is causal already."""
    if rule not in RULES:
        raise UsageError(f"rule {rule!r} for a causal form", f"one of {', '.join(RULES)}", "choose one of these")
    if network.causal:
        raise UsageError(f"a {network.config.architecture} that is causal already", "a bidirectional network",
                         "use it as it is")
    dropped, past_shift = RULES[rule]
    result = copy.deepcopy(network)
    result.config = network.config.replace(causal=True, past_shift=past_shift, hop=None)
    for module in result.temporal.values():
        assert isinstance(module, TemporalModule)
        module.causal, module.past_shift = True, past_shift
        if dropped:
            module.drop_future_taps()
    return result
