"""Orders with shards left out."""

from hypothesis import strategies as st


@st.composite
def changes(draw, counts, batch):
    """Up to three changes of what is left out, at any steps, with a batch left."""
    steps = draw(st.one_of(st.just([]), st.lists(st.integers(0, 40), max_size=3, unique=True)))
    return tuple((step, tuple(draw(left_out(counts, batch)))) for step in sorted(steps))


def left_out(counts, batch):
    out = st.lists(st.integers(0, len(counts) - 1), max_size=4, unique=True)
    return out.filter(lambda out: sum(counts) - sum(counts[s] for s in out) >= batch)
