"""Records for the tests of the ledger, the study and the report."""

from kdnas_hf.search import Architecture, ArchitectureRecord, SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3],
        "num_attention_heads": [2],
        "hidden_size": [8, 16],
        "intermediate_size": [16, 32],
        "hidden_act": ["gelu", "relu"],
    }
)

# one to climb in
LANDSCAPE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3, 4, 5, 6],
        "num_attention_heads": [2, 3, 4],
        "hidden_size": [24, 36, 48],
        "intermediate_size": [32, 64, 96, 128],
        "hidden_act": ["gelu", "relu"],
    }
)


def record(number, architecture=None, r2=0.3, latency=10.0, state="complete", episode=0, reward=None):
    complete = state == "complete"
    return ArchitectureRecord(
        number=number,
        episode=episode,
        architecture=architecture or Architecture(1, 2, 8, 16, "gelu"),
        state=state,
        loss=1 - r2 if complete else None,
        r2=r2 if complete else None,
        latency_ms=latency,
        latency_iqr_ms=0.5,
        teacher_latency_ms=40.0,
        speedup=40.0 / latency,
        parameters=1000,
        tokens=500,
        seconds=1.5,
        reward=(r2 if reward is None else reward) if complete else None,
    )
