"""Merge methods written down as slowly and plainly as they can be: whole tensors, fp64, sorts and loops.

Each takes the models' tensors, the base, parameters and per-model parameters, and returns the merged tensor; ``ways`` is what
a random method keeps, a mask for each model.
"""

import math

import torch

EPS = 1e-30


def taus(models, base):
    return [m.double() - base.double() for m in models]


def values(per_model, key):
    return [one[key] for one in per_model]


def linear(models, base, p, q):
    w = values(q, "weight")
    total = sum(x * m.double() for x, m in zip(w, models, strict=True))
    return total / sum(w) if p["normalize"] else total


def passthrough(models, base, p, q):
    return models[0].double() * (1 if q[0]["scale"] is None else q[0]["scale"])


def task_arithmetic(models, base, p, q):
    return summed(taus(models, base), base, p, q, elect=False)


def nps(models, base, p, q):
    return summed(taus(models, base), base, {"lambda": 1.0, "normalize": False}, q, elect=False)


def summed(kept, base, p, q, elect):
    w = values(q, "weight")
    terms = [x * k for x, k in zip(w, kept, strict=True)]
    if not elect:
        merged = sum(terms) / (sum(w) if p["normalize"] else 1)
        return base.double() + p["lambda"] * merged
    merged = torch.zeros(base.shape).double()
    for place in range(merged.numel()):
        entries = [t.reshape(-1)[place].item() for t in terms]
        sign = 1 if sum(entries) >= 0 else -1
        agreeing = [i for i, e in enumerate(entries) if e * sign > 0]
        total = sum(entries[i] for i in agreeing)
        below = sum(w[i] for i in agreeing) if p["normalize"] else 1
        merged.view(-1)[place] = total / (below or 1)
    return base.double() + p["lambda"] * merged


def largest(x, count):
    """A mask of the largest magnitudes; of equal ones the first."""
    order = x.reshape(-1).abs().argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(x.numel()).double()
    mask[order] = 1
    return mask.view(x.shape)


def rescaled(x, mask, yes):
    kept = x * mask
    return kept * (x.abs().sum() / kept.abs().sum()) if yes and kept.abs().sum() > 0 else kept


def ties(models, base, p, q):
    kept = []
    for x, one in zip(taus(models, base), q, strict=True):
        mask = largest(x, max(1, int(one["density"] * x.numel())))
        kept.append(rescaled(x, mask, p["rescale"] and one["density"] < 1))
    return summed(kept, base, p, q, elect=True)


def breadcrumbs(models, base, p, q, elect=False):
    kept = []
    for x, one in zip(taus(models, base), q, strict=True):
        n = x.numel()
        count = max(1, int(one["density"] * n))
        top = min(int(one["gamma"] * n), n - count) if one["density"] < 1 else 0
        kept.append(rescaled(x, largest(x, count + top) - largest(x, top), p["rescale"] and one["density"] < 1))
    return summed(kept, base, p, q, elect)


def breadcrumbs_ties(models, base, p, q):
    return breadcrumbs(models, base, p, q, elect=True)


def slerp(models, base, p, q):
    return arc(base.double(), models[0].double(), p["t"], 0.9995)


def arc(a, b, t, linear_above):
    cos = float((a * b).sum() / max(a.norm(), 1e-7) / max(b.norm(), 1e-7))
    if abs(cos) > linear_above:
        return (1 - t) * a + t * b
    theta = math.acos(cos)
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def nuslerp(models, base, p, q):
    w = values(q, "weight")
    t = w[1] / sum(w)
    origin = torch.zeros(models[0].shape).double() if base is None else base.double()
    a, b = (m.double() - origin for m in models)
    if p["nuslerp_flatten"] or a.dim() < 2:
        return origin + arc(a, b, t, 1 - 1e-9)
    dim = 0 if p["nuslerp_row_wise"] else -1
    a, b = a.movedim(dim, -1), b.movedim(dim, -1)
    merged = torch.stack([arc(x, y, t, 1 - 1e-9) for x, y in zip(a.flatten(0, -2), b.flatten(0, -2), strict=True)])
    return origin + merged.view(a.shape).movedim(-1, dim)


def multislerp(models, base, p, q):
    w = torch.tensor(values(q, "weight")).double()
    w = w / w.sum() if p["normalize_weights"] else w
    if len(models) == 1:
        return models[0].double()
    origin = 0 if base is None else base.double()
    vectors = torch.stack([(m.double() - origin).flatten() for m in models])
    norms = vectors.norm(dim=1)
    units = vectors / (norms[:, None] + p["eps"])
    mean = (w[:, None] * units).sum(0)
    mean = mean / mean.norm()
    tangent = (w[:, None] * (units - (units @ mean)[:, None] * mean)).sum(0)
    angle = tangent.norm() + p["eps"]
    point = mean * angle.cos() + tangent * angle.sin() / angle
    return origin + (point * (w * norms).sum()).view(models[0].shape)


def karcher(models, base, p, q):
    """By gradient descent of the sum of squared angles, from the first model: many small steps."""
    vectors = [m.double().flatten() for m in models]
    units = [v / v.norm() for v in vectors]
    mean = units[0]
    for _ in range(4000):
        step = torch.zeros_like(mean)
        for u in units:
            theta = torch.acos((mean @ u).clamp(-1, 1))
            if theta > 1e-9:
                step += theta / theta.sin() * (u - theta.cos() * mean) / len(units)
        mean = mean + 0.05 * step
        mean = mean / mean.norm()
    return (mean * sum(v.norm() for v in vectors) / len(vectors)).view(models[0].shape)


def sce(models, base, p, q):
    d = torch.stack(taus(models, base))
    if p["select_topk"] < 1:
        variance = d.var(0, unbiased=False)
        d = d * largest(variance, int((variance > 0).sum() * p["select_topk"]))
    energy = d.square().flatten(1).mean(1)
    w = energy / energy.sum() if energy.sum() >= 1e-6 else torch.ones_like(energy) / len(energy)
    merged = torch.zeros(base.shape).double()
    for place in range(merged.numel()):
        entries = d.flatten(1)[:, place]
        sign = 1 if entries.sum() >= 0 else -1
        agree = [i for i in range(len(w)) if entries[i] * sign > 0]
        below = max(1e-6, sum(float(w[i]) for i in agree))
        merged.view(-1)[place] = sum(float(w[i] * entries[i]) for i in agree) / below
    return base.double() + merged


def model_stock(models, base, p, q):
    d = torch.stack(taus(models, base))
    rows = d.flatten(1)[:, None] if not p["filter_wise"] or base.dim() < 2 else d.flatten(1, -2)
    n = len(models)
    out = torch.zeros_like(rows[0])
    for r in range(rows.shape[1]):
        pairs = [(i, j) for i in range(n) for j in range(i)]
        cos = sum(torch.cosine_similarity(rows[i, r], rows[j, r], dim=0) for i, j in pairs) / len(pairs)
        t = n * cos / (1 + (n - 1) * cos)
        out[r] = t * rows[:, r].mean(0)
    return base.double() + out.view(base.shape)


def nearswap(models, base, p, q):
    tau = taus(models, base)[0]
    return base.double() + tau * (p["t"] / tau.abs().clamp(min=1e-6)).clamp(max=1)


def arcee_fusion(models, base, p, q):
    a, b = models[0].double(), base.double()
    probable, prior = a.softmax(-1) + 1e-8, b.softmax(-1) + 1e-8
    score = ((a - b).abs() * (probable * (probable / prior).log()).sum(-1, keepdim=True)).flatten()
    q1, median, q3 = (score.sort().values[int(share * (score.numel() - 1))] for share in (0.25, 0.5, 0.75))
    return b + (a - b) * (score >= median + 1.5 * (q3 - q1)).view(a.shape)


def consensus(models, base, p, q):
    d = taus(models, base)
    total = sum(one["weight"] * x for one, x in zip(q, d, strict=True))
    needs = sum((x.abs() >= one["mask_lambda"] * (total - x).abs()).double() for one, x in zip(q, d, strict=True))
    return base.double() + p["lambda"] * total * (needs >= min(p["agree"], len(d)))


def pcb(models, base, p, q):
    d = torch.stack(taus(models, base)).flatten(1)
    n, size = d.shape
    up = d.abs().sort(dim=1).values
    low, high = up[:, max(1, int(size * 1e-4))], up[:, int(size * (1 - 1e-4) - 1)]
    clipped = d.sign() * d.abs().clamp(low[:, None], high[:, None])
    norm = (clipped.abs() - low[:, None]) / (high - low)[:, None]
    score = ((n * norm**2).exp() * (d * d.sum(0)).tanh()).clamp(min=0)
    least = score.sort(dim=1).values[:, min(size - 1, int(size * (1 - p["density"])))][:, None]
    most = score.max(dim=1, keepdim=True).values
    share = (score.clamp(min=least) - least) / (most - least)
    w = torch.tensor(values(q, "weight"))[:, None]
    merged = (w * clipped * share).sum(0) / share.sum(0).clamp(min=1e-12)
    return base.double() + p["lambda"] * merged.view(base.shape)


def emr(models, base, p, q):
    d = torch.stack(taus(models, base))
    sign = (d.sum(0) >= 0).double() * 2 - 1
    return base.double() + sign * (d * sign).clamp(min=0).max(0).values


def disjoint(models, base, p, q):
    d = torch.stack(taus(models, base))
    assert p["overlap"] or int((d != 0).int().sum(0).max()) <= 1
    return base.double() + d.sum(0)


def averaged(models, base, p, q):
    d = taus(models, base)
    return base.double() + p["lambda"] * sum(one["weight"] * x for one, x in zip(q, d, strict=True)) / len(d)


def tsv(models, base, p, q):
    if base.dim() != 2:
        return averaged(models, base, p, q)
    lefts, sizes, rights = [], [], []
    for one, x in zip(q, taus(models, base), strict=True):
        u, s, v = torch.linalg.svd(one["weight"] * x, full_matrices=False)
        for k in range(max(1, min(x.shape) // len(models))):
            lefts.append(u[:, k]), sizes.append(s[k]), rights.append(v[k])
    left, right = torch.stack(lefts, 1), torch.stack(rights)
    left = left @ inverse_root(left.T @ left)
    right = inverse_root(right @ right.T) @ right
    return base.double() + p["lambda"] * left @ torch.diag(torch.stack(sizes)) @ right


def inverse_root(symmetric):
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values**-0.5) @ vectors.T


def iso(models, base, p, q):
    if base.dim() != 2:
        return averaged(models, base, p, q)
    total = sum(one["weight"] * x for one, x in zip(q, taus(models, base), strict=True))
    size = torch.linalg.svdvals(total).mean()
    wide = total if total.shape[0] <= total.shape[1] else total.T
    polar = inverse_root(wide @ wide.T) @ wide
    return base.double() + p["lambda"] * size * (polar if wide is total else polar.T)


def wudi(models, base, p, q):
    if base.dim() != 2:
        return averaged(models, base, p, q)
    d = [one["weight"] * x for one, x in zip(q, taus(models, base), strict=True)]
    tau = torch.nn.Parameter(sum(d))
    adam = torch.optim.Adam([tau], lr=p["learning_rate"])
    for _ in range(p["steps"]):
        adam.zero_grad()
        loss = sum(((tau - x) @ x.T).square().sum() / x.square().sum() for x in d)
        loss.backward()
        adam.step()
    return base.double() + p["lambda"] * tau.detach()
