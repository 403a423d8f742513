"""Losses against naive Python loops, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F

from podium import losses

INFINITY = float("inf")


def softmax(values):
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def log_softmax(values):
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values)) + top
    return [value - total for value in values]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def numeric_gradient(function, tensor, step=1e-4):
    """Central differences in float64, one number at a time."""
    gradient = torch.zeros_like(tensor)
    for at in range(tensor.numel()):
        ends = []
        for sign in (1, -1):
            moved = tensor.clone()
            moved.view(-1)[at] += sign * step
            ends.append(function(moved).item())
        gradient.view(-1)[at] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def check_gradient(function, tensor, tolerance=1e-6):
    leaf = tensor.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(gradient, numeric_gradient(function, tensor), atol=tolerance, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


# --- InfoNCE ---------------------------------------------------------------------------------------------------------


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def naive_info_nce(query, document, target, temperature, mask=None, teacher=None, soft_temperature=1.25, weight=0.5):
    total = hits = 0.0
    for q in range(len(query)):
        kept = [m for m in range(len(document)) if mask is None or not mask[q][m]]
        scores = [sum(a * b for a, b in zip(query[q].tolist(), document[m].tolist())) / temperature for m in kept]
        logs = dict(zip(kept, log_softmax(scores)))
        loss = -logs[int(target[q])]
        hits += max(logs, key=logs.get) == int(target[q])
        if teacher is not None and not any(math.isnan(value) for value in teacher[q].tolist()):
            wanted = softmax([teacher[q][m].item() / soft_temperature for m in kept])
            loss = (1 - weight) * loss - weight * sum(share * logs[m] for share, m in zip(wanted, kept))
        total += loss
    return total, hits


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("taught", [False, True])
def test_info_nce(masked, taught):
    query, document, target = unit(5, 4), unit(7, 4), torch.tensor([0, 3, 3, 6, 1])
    mask = teacher = None
    if masked:
        mask = torch.rand(5, 7) < 0.4
        mask[range(5), target] = False
    if taught:
        teacher = torch.randn(5, 7, dtype=torch.float64) * 3
        teacher[2] = math.nan
    loss, weight, metrics = losses.info_nce(query, document, target, 0.2, mask, teacher)
    expected, hits = naive_info_nce(query, document, target, 0.2, mask, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert weight == 5.0 and metrics == {"accuracy": hits}
    check_gradient(lambda moved: losses.info_nce(moved, document, target, 0.2, mask, teacher)[0], query)
    check_gradient(lambda moved: losses.info_nce(query, moved, target, 0.2, mask, teacher)[0], document)


def test_a_masked_document_has_no_gradient_even_with_a_teacher():
    query, document, target = unit(3, 4), unit(4, 4).requires_grad_(), torch.tensor([0, 1, 2])
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, 3] = True
    teacher = torch.randn(3, 4, dtype=torch.float64)
    loss, *_ = losses.info_nce(query, document, target, 0.1, mask, teacher)
    loss.backward()
    assert loss.isfinite() and document.grad.isfinite().all()
    assert not document.grad[3].any() and document.grad[:3].abs().sum() > 0


def test_rows_without_a_teacher_keep_the_plain_loss():
    query, document, target = unit(3, 4), unit(4, 4), torch.tensor([0, 1, 2])
    teacher = torch.full((3, 4), math.nan, dtype=torch.float64)
    plain, *_ = losses.info_nce(query, document, target, 0.1)
    assert losses.info_nce(query, document, target, 0.1, teacher_QM=teacher)[0].item() == plain.item()


def test_teacher_entries_of_minus_infinity_are_no_candidates():
    scores, teacher = torch.randn(2, 3), torch.tensor([[1.0, -INFINITY, 2.0], [0.0, 0.0, -INFINITY]])
    rows = []
    for s, t in zip(scores.tolist(), teacher.tolist()):
        rows.append(-sum(share * log for share, log in zip(softmax([v / 1.5 for v in t]), log_softmax(s))))
    assert losses.soft_cross_entropy(scores, teacher, 1.5).tolist() == pytest.approx(rows, rel=1e-5)


# --- next token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_next_token(weighted):
    logits, target = torch.randn(6, 9), torch.tensor([1, 0, 8, 8, 4, 2])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.25]) if weighted else None
    loss, weight, metrics = losses.next_token(logits, target, weights)
    share = weights.tolist() if weighted else [1.0] * 6
    naive = sum(-log_softmax(row)[t] * w for row, t, w in zip(logits.tolist(), target.tolist(), share))
    hits = sum(w for row, t, w in zip(logits.tolist(), target.tolist(), share) if row.index(max(row)) == t)
    assert loss.item() == pytest.approx(naive, rel=1e-5)
    assert weight == sum(share) and metrics == {"token_accuracy": pytest.approx(hits)}


def test_next_token_in_half_precision_is_summed_in_full():
    logits, target = torch.randn(64, 500).bfloat16(), torch.randint(0, 500, (64,))
    assert losses.next_token(logits, target)[0].item() == losses.next_token(logits.float(), target)[0].item()


# --- groups ----------------------------------------------------------------------------------------------------------


def naive_group(scores, target, valid, labelled, teacher, temperature, weight, smoothing):
    total = hits = 0.0
    for g in range(len(scores)):
        kept = [k for k in range(len(scores[g])) if valid[g][k]]
        logs = dict(zip(kept, log_softmax([scores[g][k].item() for k in kept])))
        hard = 0.0
        if labelled[g]:
            for k in kept:
                wanted = (1 - smoothing) * (k == int(target[g])) + smoothing / len(kept)
                hard -= wanted * logs[k]
            hits += max(logs, key=logs.get) == int(target[g])
        soft = 0.0
        if weight:
            wanted = softmax([teacher[g][k].item() / temperature for k in kept])
            soft = -sum(share * logs[k] for share, k in zip(wanted, kept))
        total += (1 - weight) * hard + weight * soft
    return total, hits


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("padded", [False, True])
def test_group_softmax(smoothing, weight, padded):
    scores, target = torch.randn(4, 5), torch.tensor([0, 2, -1, 1])
    valid = torch.ones(4, 5, dtype=torch.bool)
    if padded:
        valid[0, 3:] = valid[1, 4:] = valid[3, 2:] = False
    labelled = torch.tensor([True, True, False, True])
    teacher = torch.randn(4, 5) if weight else None
    if padded and weight:
        teacher[~valid] = math.nan
    settings = dict(teacher_temperature=0.7, distillation_weight=weight, label_smoothing=smoothing)
    loss, count, metrics = losses.group_softmax(scores, target, valid, labelled, teacher, **settings)
    expected, hits = naive_group(scores, target, valid, labelled, teacher, 0.7, weight, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert count == 4.0 and metrics == {"accuracy": hits}
    leaf = scores.clone().requires_grad_()
    losses.group_softmax(leaf, target, valid, labelled, teacher, **settings)[0].backward()
    assert leaf.grad.isfinite().all() and not leaf.grad[~valid].any()
    double = scores.double()

    def naive(moved):
        total, _ = naive_group(moved, target, valid, labelled, teacher, 0.7, weight, smoothing)
        return torch.tensor(total, dtype=torch.float64)

    torch.testing.assert_close(leaf.grad.double(), numeric_gradient(naive, double), atol=1e-5, rtol=1e-3)


def test_all_groups_are_labelled_by_default():
    scores, target, valid = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.ones(3, 4, dtype=torch.bool)
    assert losses.group_softmax(scores, target, valid)[0].item() == pytest.approx(
        F.cross_entropy(scores, target).item() * 3
    )


def test_distillation_without_a_teacher_is_refused():
    scores, target, valid = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="teacher score for every candidate"):
        losses.group_softmax(scores, target, valid, distillation_weight=0.5)
    teacher = torch.randn(3, 4)
    teacher[1, 2] = math.nan
    with pytest.raises(ValueError, match="teacher score for every candidate"):
        losses.group_softmax(scores, target, valid, teacher_GK=teacher, distillation_weight=0.5)


def test_sums_over_parts_are_the_sum_over_all():
    query, document, target = unit(6, 4), unit(8, 4), torch.arange(6)
    whole = losses.info_nce(query, document, target, 0.1)[0]
    parts = [losses.info_nce(query[at], document, target[at], 0.1)[0] for at in (slice(0, 2), slice(2, 6))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_temperature_goes_linearly_from_first_to_last():
    values = [losses.temperature_at(step, 5, 0.1, 0.02) for step in range(7)]
    assert values == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02])
    assert losses.temperature_at(0, 1, 0.1, 0.02) == 0.1
