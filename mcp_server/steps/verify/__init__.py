"""Is this folder the model that its recipe describes? No torch, and no weight is read that need not be.

    structure   files, index, names, shapes, dtypes: from headers
    agreement   config, tokenizer and tied weights against the tensors
    settings    config, tokenizer and end of turn against those of the merged models
    values      finite numbers, sampled or all of them
    origin      the record of the merge against the files that are there now
    landing     every tensor computed again from the sources, how far each delta arrived, what rounding lost
    foreign     merges from elsewhere: random methods without their seed, folders without a recipe

Every check answers yes, no or unknown. The verdict is `unreadable` when the headers cannot be trusted, `failed` when a check says
no, `inconclusive` when one could not be made (the reason says how to make it), else `verified`. Whether the model loads and
generates is a worker's matter (`mcp_server.workers.verify` adds that check).
"""

from mcp_server.steps.verify.verdict import verdict_of, verify, with_check

__all__ = ["verdict_of", "verify", "with_check"]
