"""Questions, judgements and rationales from language models: a ledger, a runner, and the checks around them."""
