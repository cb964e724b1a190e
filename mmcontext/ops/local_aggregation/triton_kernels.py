"""Triton kernels for the local aggregation. Imported lazily, since triton may be missing.

Notation used in the comments: B batch, C channels, G kernel groups, KK = KH * KW taps,
P output positions (Ho * Wo flattened), and tiles [channels, positions] of
BLOCK_C x BLOCK_P elements. Every program owns the elements it writes, so no atomics are
needed and the results are deterministic.

Tensors are addressed through their strides; the start of an image is always computed in
int64, offsets inside an image in ``IDX``, which the launcher sets to int64 for images
that span 2^31 elements or more.
"""
import triton
import triton.language as tl

# Arguments that change with the image size are not specialised, so that a new size does not
# recompile. The innermost strides are: a stride of 1 there allows vectorised accesses.
_SIZES = ('channels', 'groups', 'positions', 'class_w', 'in_h', 'in_w', 'out_h', 'out_w', 'reduced',
          *(f'{tensor}_s{axis}' for tensor in 'xywr' for axis in 'bcgh'))
_jit = triton.jit(do_not_specialize=_SIZES)


@triton.jit
def _channel(group, j, groups, group_channels, INTERLEAVED: tl.constexpr):
    """Index of the j-th channel that shares the kernels of ``group``."""
    if INTERLEAVED:
        return group + j * groups
    else:  # noqa: RET505, triton compiles one branch
        return group * group_channels + j


@_jit
def forward_kernel(
        x, w, y, channels, groups, positions, in_h, in_w, out_w,
        x_sb, x_sc, x_sh, x_sw, w_sb, w_sg, w_sk, w_sh, w_sw, y_sb, y_sc, y_sh, y_sw,
        KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
        PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
        INTERLEAVED: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """y[b, c, p] = sum_k w[b, g(c), k, p] * x[b, c, stride * p + dilation * k - padding].

    A row of kernel taps is loaded once and multiplies all BLOCK_C channels of the tile.
    """
    group_channels = channels // groups
    tiles = tl.cdiv(positions, BLOCK_P)
    chunks = tl.cdiv(group_channels, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % tiles).to(IDX)
    chunk = (pid // tiles % chunks).to(tl.int32)
    g = (pid // tiles // chunks % groups).to(tl.int32)
    b = pid // tiles // chunks // groups

    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    p_ok = p < positions
    oh = p // out_w
    ow = p % out_w
    j = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = j < group_channels
    c = _channel(g, j, groups, group_channels, INTERLEAVED).to(IDX)

    x_ptrs = x + b * x_sb + (c * x_sc)[:, None]
    w_ptrs = w + b * w_sb + g.to(IDX) * w_sg + (oh * w_sh + ow * w_sw)
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=ACC)
    for kh in range(KH):
        row = oh * SH + (kh * DH - PH)
        row_ok = p_ok & (row >= 0) & (row < in_h)
        for kw in tl.static_range(KW):
            col = ow * SW + (kw * DW - PW)
            ok = row_ok & (col >= 0) & (col < in_w)
            k = tl.full((), kw, IDX) + kh * KW
            wk = tl.load(w_ptrs + k * w_sk, mask=ok, other=0.0).to(ACC)
            xk = tl.load(x_ptrs + (row * x_sh + col * x_sw)[None, :],
                         mask=c_ok[:, None] & ok[None, :], other=0.0).to(ACC)
            acc += xk * wk[None, :]
    y_ptrs = y + b * y_sb + (c * y_sc)[:, None] + (oh * y_sh + ow * y_sw)[None, :]
    tl.store(y_ptrs, acc.to(y.dtype.element_ty), mask=c_ok[:, None] & p_ok[None, :])


@_jit
def grad_input_kernel(
        gy, w, gx, channels, groups, positions, class_w, in_h, in_w, out_h, out_w,
        y_sb, y_sc, y_sh, y_sw, w_sb, w_sg, w_sk, w_sh, w_sw, x_sb, x_sc, x_sh, x_sw,
        KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
        PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
        INTERLEAVED: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """gx[b, c, q] = sum_k w[b, g(c), k, p] * gy[b, c, p], p = (q + padding - dilation k) / stride.

    Input positions are visited by residue class modulo the stride: within a class, the
    taps that hit an output position are the same for all, so no tap is wasted.
    ``positions`` counts those of the largest class.
    """
    group_channels = channels // groups
    tiles = tl.cdiv(positions, BLOCK_P)
    chunks = tl.cdiv(group_channels, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % tiles).to(IDX)
    rest = pid // tiles
    residue = (rest % (SH * SW)).to(tl.int32)
    rest = rest // (SH * SW)
    chunk = (rest % chunks).to(tl.int32)
    rest = rest // chunks
    g = (rest % groups).to(tl.int32)
    b = rest // groups

    first_h = residue // SW
    first_w = residue % SW
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    qh = p // class_w
    qw = p % class_w
    row = qh * SH + first_h
    col = qw * SW + first_w
    p_ok = (p < positions) & (row < in_h) & (col < in_w)
    j = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = j < group_channels
    c = _channel(g, j, groups, group_channels, INTERLEAVED).to(IDX)

    gy_ptrs = gy + b * y_sb + (c * y_sc)[:, None]
    w_base = w + b * w_sb + g.to(IDX) * w_sg
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=ACC)
    for kh in range(KH):
        shift_h = first_h + PH - kh * DH
        if shift_h % SH == 0:
            oh = qh + shift_h // SH
            row_ok = p_ok & (oh >= 0) & (oh < out_h)
            for kw in tl.static_range(KW):
                shift_w = first_w + PW - kw * DW
                if shift_w % SW == 0:
                    ow = qw + shift_w // SW
                    ok = row_ok & (ow >= 0) & (ow < out_w)
                    k = tl.full((), kw, IDX) + kh * KW
                    wk = tl.load(w_base + k * w_sk + (oh * w_sh + ow * w_sw),
                                 mask=ok, other=0.0).to(ACC)
                    gk = tl.load(gy_ptrs + (oh * y_sh + ow * y_sw)[None, :],
                                 mask=c_ok[:, None] & ok[None, :], other=0.0).to(ACC)
                    acc += gk * wk[None, :]
    gx_ptrs = gx + b * x_sb + (c * x_sc)[:, None] + (row * x_sh + col * x_sw)[None, :]
    tl.store(gx_ptrs, acc.to(gx.dtype.element_ty), mask=c_ok[:, None] & p_ok[None, :])


@_jit
def grad_weight_kernel(
        gy, x, gw, channels, groups, positions, in_h, in_w, out_w,
        y_sb, y_sc, y_sh, y_sw, x_sb, x_sc, x_sh, x_sw, w_sb, w_sg, w_sk, w_sh, w_sw,
        KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
        PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
        INTERLEAVED: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, CHUNKS: tl.constexpr):
    """gw[b, g, k, p] = sum over c of g of gy[b, c, p] * x[b, c, stride p + dilation k - padding].

    If the channels of a group fit in one tile (CHUNKS is 1), gy is loaded once for all taps.
    """
    group_channels = channels // groups
    tiles = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % tiles).to(IDX)
    g = (pid // tiles % groups).to(tl.int32)
    b = pid // tiles // groups

    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    p_ok = p < positions
    oh = p // out_w
    ow = p % out_w
    j = tl.arange(0, BLOCK_C)
    c = _channel(g, j, groups, group_channels, INTERLEAVED).to(IDX)
    step = _channel(0, BLOCK_C, groups, group_channels, INTERLEAVED)

    gy_ptrs = gy + b * y_sb + (c * y_sc)[:, None] + (oh * y_sh + ow * y_sw)[None, :]
    x_ptrs = x + b * x_sb + (c * x_sc)[:, None]
    gw_ptrs = gw + b * w_sb + g.to(IDX) * w_sg + (oh * w_sh + ow * w_sw)
    if CHUNKS == 1:
        c_ok = j < group_channels
        gyk = tl.load(gy_ptrs, mask=c_ok[:, None] & p_ok[None, :], other=0.0).to(ACC)
    for kh in range(KH):
        row = oh * SH + (kh * DH - PH)
        row_ok = p_ok & (row >= 0) & (row < in_h)
        for kw in tl.static_range(KW):
            col = ow * SW + (kw * DW - PW)
            ok = row_ok & (col >= 0) & (col < in_w)
            xk_ptrs = x_ptrs + (row * x_sh + col * x_sw)[None, :]
            if CHUNKS == 1:
                xk = tl.load(xk_ptrs, mask=c_ok[:, None] & ok[None, :], other=0.0).to(ACC)
                acc = tl.sum(xk * gyk, axis=0)
            else:
                acc = tl.zeros((BLOCK_P,), dtype=ACC)
                for chunk in range(CHUNKS):
                    some = (chunk * BLOCK_C + j < group_channels)[:, None] & ok[None, :]
                    skip = tl.full((), step, IDX) * chunk
                    xk = tl.load(xk_ptrs + skip * x_sc, mask=some, other=0.0).to(ACC)
                    gk = tl.load(gy_ptrs + skip * y_sc, mask=some, other=0.0).to(ACC)
                    acc += tl.sum(xk * gk, axis=0)
            k = tl.full((), kw, IDX) + kh * KW
            tl.store(gw_ptrs + k * w_sk, acc.to(gw.dtype.element_ty), mask=p_ok)


@_jit
def fused_forward_kernel(
        x, r, weight, bias, scale, y, channels, groups, reduced, positions, in_h, in_w, out_w,
        x_sb, x_sc, x_sh, x_sw, r_sb, r_sc, r_sh, r_sw, m_so, m_si, y_sb, y_sc, y_sh, y_sw,
        KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
        PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
        HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, DOT: tl.constexpr, IDX: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
        BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, R_BLOCKS: tl.constexpr):
    """Forward with kernels w = weight @ r + bias, computed tile by tile and never stored.

    Kernels are shared in blocks of channels. ``scale`` [B, C] multiplies the channels.

    BLOCK_K taps at a time: a matrix product [BLOCK_K, reduced] @ [reduced, BLOCK_P] gives
    their kernel values, which multiply the gathered inputs [BLOCK_C, BLOCK_K, BLOCK_P]
    and are summed over the taps. One program serves all channels of a group, so no
    kernel value is computed twice.
    """
    group_channels = channels // groups
    tiles = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % tiles).to(IDX)
    g = (pid // tiles % groups).to(tl.int32)
    b = pid // tiles // groups

    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    p_ok = p < positions
    oh = p // out_w
    ow = p % out_w
    j = tl.arange(0, BLOCK_C)
    c_ok = j < group_channels
    c = (g * group_channels + j).to(IDX)

    x_ptrs = x + b * x_sb + (c * x_sc)[:, None, None]
    r_ptrs = r + b * r_sb + (oh * r_sh + ow * r_sw)[None, :]
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for k0 in range(0, KH * KW, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        k_ok = k < KH * KW
        out = g * (KH * KW) + k
        wk = tl.zeros((BLOCK_K, BLOCK_P), dtype=tl.float32)
        for block in range(R_BLOCKS):
            i = block * BLOCK_R + tl.arange(0, BLOCK_R)
            i_ok = i < reduced
            m = tl.load(weight + (out.to(IDX) * m_so)[:, None] + (i * m_si)[None, :],
                        mask=k_ok[:, None] & i_ok[None, :], other=0.0).to(DOT)
            v = tl.load(r_ptrs + (i.to(IDX) * r_sc)[:, None],
                        mask=i_ok[:, None] & p_ok[None, :], other=0.0).to(DOT)
            wk = tl.dot(m, v, wk, input_precision='ieee')
        if HAS_BIAS:
            wk += tl.load(bias + out, mask=k_ok, other=0.0).to(tl.float32)[:, None]
        row = oh[None, :] * SH + ((k // KW) * DH - PH)[:, None]
        col = ow[None, :] * SW + ((k % KW) * DW - PW)[:, None]
        ok = (k_ok[:, None] & p_ok[None, :] & (row >= 0) & (row < in_h)
              & (col >= 0) & (col < in_w))
        xk = tl.load(x_ptrs + (row * x_sh + col * x_sw)[None, :, :],
                     mask=c_ok[:, None, None] & ok[None, :, :], other=0.0).to(tl.float32)
        acc += tl.sum(xk * wk[None, :, :], axis=1)
    if HAS_SCALE:
        factor = tl.load(scale + b * channels + c, mask=c_ok, other=0.0)
        acc *= factor.to(tl.float32)[:, None]
    y_ptrs = y + b * y_sb + (c * y_sc)[:, None] + (oh * y_sh + ow * y_sw)[None, :]
    tl.store(y_ptrs, acc.to(y.dtype.element_ty), mask=c_ok[:, None] & p_ok[None, :])
