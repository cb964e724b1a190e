"""Small networks from coordinates to kernel values.

Every network maps positions [M, dim] in [-1, 1]^dim to values [M, out_channels] and ends in a
linear layer ``output_linear``, which a continuous convolution rescales once by the kernel's size.
"""
import math
from typing import Sequence

import torch
import torch.nn as nn
from mmcv.cnn import build_activation_layer
from torch import Tensor

from mmcontext.layers._modules import is_plain
from mmcontext.registry import MODELS


class KernelNet(nn.Module):
    """Base of the kernel networks: their common signature and the output layer.

    Args:
        dim (int): Number of coordinates.
        out_channels (int): Values per position.
        hidden_channels (int): Width. Defaults to 32.
        num_layers (int): Depth, as each network counts it. Defaults to 3.
        bias (bool): Whether the linear layers have a bias. Defaults to True.
        omega_0 (float): Highest frequency at initialisation, if the network has one.
            Defaults to 100.
        init_box (float): Half side of the box that the centres of localised filters are drawn
            from. Defaults to 1.
        causal (bool): Draw the centres near 1, the newest position, instead of around 0.
            Defaults to False.
    """

    def __init__(self,
                 dim: int,
                 out_channels: int,
                 hidden_channels: int = 32,
                 num_layers: int = 3,
                 bias: bool = True,
                 omega_0: float = 100.,
                 init_box: float = 1.,
                 causal: bool = False) -> None:
        super().__init__()
        for name, value in (('dim', dim), ('out_channels', out_channels),
                            ('hidden_channels', hidden_channels), ('num_layers', num_layers)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if omega_0 <= 0 or init_box <= 0:
            raise ValueError(f'omega_0 and init_box must be positive, got {omega_0} and {init_box}')
        self.dim = dim
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.bias = bias
        self.omega_0 = omega_0
        self.init_box = init_box
        self.causal = causal
        self.output_linear = self._linear(hidden_channels, out_channels)

    def _linear(self, in_channels: int, out_channels: int) -> nn.Linear:
        """Linear layer with variance-preserving weights and zero bias."""
        linear = nn.Linear(in_channels, out_channels, bias=self.bias)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity='linear')
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        return linear

    def features(self, positions: Tensor) -> Tensor:
        """[M, dim] to [M, hidden_channels]."""
        raise NotImplementedError

    def forward(self, positions: Tensor) -> Tensor:
        """[M, dim] to [M, out_channels]."""
        return self.output_linear(self.features(positions))

    def by_channel(self, positions: Tensor) -> Tensor:
        """The output of ``forward`` as [out_channels, M], the values of a channel contiguous."""
        linear = self.output_linear
        if not is_plain(linear, nn.Linear):
            return self(positions).t()
        features = self.features(positions).t()
        if linear.bias is None:
            return linear.weight @ features
        return torch.addmm(linear.bias[:, None], linear.weight, features)

    def extra_repr(self) -> str:
        return f'dim={self.dim}, omega_0={self.omega_0:g}, init_box={self.init_box:g}'


def _joined(filters: Sequence[nn.Module], name: str) -> Tensor:
    """The parameters of that name of all filters, concatenated."""
    return torch.cat([getattr(one, name) for one in filters])


class SineFilter(nn.Module):
    """sin(W x + b); W is uniform in +-2 pi omega_0 bound, b starts at zero."""

    def __init__(self, net: KernelNet, bound: float) -> None:
        super().__init__()
        self.linear = nn.Linear(net.dim, net.hidden_channels, bias=net.bias)
        nn.init.uniform_(self.linear.weight, -bound, bound)
        with torch.no_grad():
            self.linear.weight.mul_(2 * math.pi * net.omega_0)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, positions: Tensor) -> Tensor:
        return torch.sin(self.linear(positions))

    @classmethod
    def together(cls, filters: Sequence['SineFilter'], positions: Tensor) -> Tensor:
        """Values of all filters at once, [M, filters * hidden_channels]."""
        linears = [one.linear for one in filters]
        weight = _joined(linears, 'weight').t()
        if linears[0].bias is None:
            return torch.sin(positions @ weight)
        return torch.sin(torch.addmm(_joined(linears, 'bias'), positions, weight))


class GaborFilter(SineFilter):
    """exp(-0.5 sum_d (gamma_d (x_d - mu_d))^2) sin(W x + b).

    The frequency of a filter grows with its own inverse width gamma.

    Args:
        net (KernelNet): The network the filter is part of.
        bound (float): See :class:`SineFilter`.
        alpha (float): Shape of the Gamma distribution that gamma is drawn from, with rate 1.
        widths (int): Number of gammas per filter: 1, or ``dim`` for anisotropic filters.
    """

    def __init__(self, net: KernelNet, bound: float, alpha: float, widths: int) -> None:
        super().__init__(net, bound)
        box = torch.rand(net.hidden_channels, net.dim)
        # A box of half side 1 covers all positions.
        one_sided = net.causal and net.init_box != 1
        self.mu = nn.Parameter(1 - net.init_box * box if one_sided else net.init_box *
                               (2 * box - 1))
        # Drawn on the CPU, because a meta device has no such distribution.
        gamma = torch.distributions.Gamma(torch.tensor(alpha, device='cpu'),
                                          torch.tensor(1., device='cpu'))
        self.gamma = nn.Parameter(gamma.sample((net.hidden_channels, widths)).to(self.mu))
        with torch.no_grad():
            self.linear.weight.mul_(self.gamma)

    def forward(self, positions: Tensor) -> Tensor:
        offset = self.gamma * (positions[:, None] - self.mu)
        return torch.exp(-0.5 * offset.square().sum(-1)) * super().forward(positions)

    @classmethod
    def together(cls, filters: Sequence['GaborFilter'], positions: Tensor) -> Tensor:
        """Values of all filters at once, [M, filters * hidden_channels]."""
        offset = _joined(filters, 'gamma') * (positions[:, None] - _joined(filters, 'mu'))
        return torch.exp(-0.5 * offset.square().sum(-1)) * super().together(filters, positions)


class FourierFeatures(nn.Module):
    """[cos(W x + b), sin(W x + b)] with Gaussian W of the given standard deviation."""

    def __init__(self, net: KernelNet, std: float) -> None:
        super().__init__()
        if net.hidden_channels % 2:
            raise ValueError(
                f'hidden_channels must be even for {type(net).__name__}, got {net.hidden_channels}')
        self.linear = nn.Linear(net.dim, net.hidden_channels // 2, bias=net.bias)
        nn.init.normal_(self.linear.weight, std=std)
        if self.linear.bias is not None:
            nn.init.uniform_(self.linear.bias, -math.pi, math.pi)

    def forward(self, positions: Tensor) -> Tensor:
        phase = self.linear(positions)
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


class _MultiplicativeFilterNet(KernelNet):
    """z = f_0(x); z = f_i(x) * Linear_i(z) for i = 1 .. num_layers: num_layers + 1 filters."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.filters = nn.ModuleList(self._filter(i) for i in range(self.num_layers + 1))
        self.linears = nn.ModuleList(
            self._linear(self.hidden_channels, self.hidden_channels)
            for _ in range(self.num_layers))
        self._init_linears()

    def _filter(self, layer: int) -> nn.Module:
        raise NotImplementedError

    def _init_linears(self) -> None:
        # Filters are small away from their centres; a bias of one keeps the product alive.
        for linear in self.linears:
            if linear.bias is not None:
                nn.init.ones_(linear.bias)

    def _filtered(self, positions: Tensor) -> Sequence[Tensor]:
        """Values [M, hidden_channels] of every filter; filters of one kind are run together."""
        filters = list(self.filters)
        kind = type(filters[0])
        if kind in (SineFilter, GaborFilter) and all(
                [is_plain(one, kind) and is_plain(one.linear, nn.Linear) for one in filters]):
            return kind.together(filters, positions).split(self.hidden_channels, dim=1)
        return [one(positions) for one in filters]

    def features(self, positions: Tensor) -> Tensor:
        out, *others = self._filtered(positions)
        for values, linear in zip(others, self.linears):
            out = values * linear(out)
        return out


@MODELS.register_module()
class MAGNet(_MultiplicativeFilterNet):
    """Multiplicative anisotropic Gabor network (FlexConv, arXiv 2110.08059).

    Later filters are drawn wider (Gamma shape 6 / (layer + 1)). See :class:`KernelNet` for the
    arguments; ``num_layers`` counts the products.
    """

    def _filter(self, layer: int) -> nn.Module:
        return GaborFilter(self, bound=1 / math.sqrt(self.dim), alpha=6. / (layer + 1),
                           widths=self.dim)


@MODELS.register_module()
class GaborNet(_MultiplicativeFilterNet):
    """Gabor network with isotropic, identically distributed filters (MFN, Fathony et al.,
    ICLR 2021).

    See :class:`KernelNet` for the arguments.
    """

    def _filter(self, layer: int) -> nn.Module:
        return GaborFilter(self, bound=1 / self.dim, alpha=6. / (self.num_layers + 1), widths=1)


@MODELS.register_module()
class FourierNet(_MultiplicativeFilterNet):
    """Multiplicative network of sines, initialised so that all frequencies have equal weight.

    See :class:`KernelNet` for the arguments.
    """

    def _filter(self, layer: int) -> nn.Module:
        return SineFilter(self, bound=1 / self.dim)

    @torch.no_grad()
    def _init_linears(self) -> None:
        # sin * sin halves the amplitude of each of its two frequencies; orthogonal weights with
        # gain sqrt(2) compensate for this, and the bias preserves the lower frequencies.
        product = torch.eye(self.hidden_channels)
        for i, linear in enumerate(self.linears):
            nn.init.orthogonal_(linear.weight, gain=math.sqrt(2))
            product = linear.weight @ product
            if linear.bias is not None:
                linear.bias.copy_(product.sum(1) / (self.hidden_channels * 2**(i + 1)))


@MODELS.register_module()
class RandomFourierNet(_MultiplicativeFilterNet):
    """Multiplicative network whose filters are random Fourier features.

    ``omega_0`` is spread over the products: each filter has standard deviation
    2 pi omega_0 / sqrt(num_layers + 1). See :class:`KernelNet` for the arguments;
    ``hidden_channels`` must be even.
    """

    def _filter(self, layer: int) -> nn.Module:
        std = 2 * math.pi * self.omega_0 / math.sqrt(self.num_layers + 1)
        return FourierFeatures(self, std=std)


class Sine(nn.Module):
    """sin(omega_0 x)."""

    def __init__(self, omega_0: float) -> None:
        super().__init__()
        self.omega_0 = omega_0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * x)


@MODELS.register_module()
class SIREN(KernelNet):
    """Network of sines, sin(omega_0 (W x + b)) (Sitzmann et al., NeurIPS 2020).

    First layer uniform in +-1 / dim, hidden layers in +-sqrt(6 / hidden) / omega_0, biases zero.
    See :class:`KernelNet` for the arguments; ``num_layers`` counts the output layer, so it must
    be at least 2.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _check_depth(self)
        layers = []
        for i in range(self.num_layers - 1):
            linear = self._linear(self.dim if i == 0 else self.hidden_channels,
                                  self.hidden_channels)
            bound = (1 / self.dim if i == 0 else
                     math.sqrt(6 / self.hidden_channels) / self.omega_0)
            nn.init.uniform_(linear.weight, -bound, bound)
            layers += [linear, Sine(self.omega_0)]
        self.layers = nn.Sequential(*layers)

    def features(self, positions: Tensor) -> Tensor:
        return self.layers(positions)


def _check_depth(net: KernelNet) -> None:
    if net.num_layers < 2:
        raise ValueError(f'num_layers must be at least 2 for {type(net).__name__}, which counts '
                         f'the output layer, got {net.num_layers}')


@MODELS.register_module()
class KernelMLP(KernelNet):
    """Plain multi-layer perceptron on the coordinates.

    Args:
        act_cfg (dict): Activation. Defaults to ReLU.
        Others: See :class:`KernelNet`; ``num_layers`` counts the output layer, so it must be at
            least 2, and ``omega_0``, ``init_box`` and ``causal`` have no effect.
    """

    def __init__(self, *args, act_cfg: dict = dict(type='ReLU'), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _check_depth(self)
        self.embedding = self._embedding(act_cfg)
        layers = []
        for _ in range(self.num_layers - 2):
            layers += self._activated(self.hidden_channels, act_cfg)
        self.layers = nn.Sequential(*layers)

    def _activated(self, in_channels: int, act_cfg: dict) -> list:
        linear = self._linear(in_channels, self.hidden_channels)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity='relu')
        return [linear, build_activation_layer(act_cfg)]

    def _embedding(self, act_cfg: dict) -> nn.Module:
        return nn.Sequential(*self._activated(self.dim, act_cfg))

    def features(self, positions: Tensor) -> Tensor:
        return self.layers(self.embedding(positions))


@MODELS.register_module()
class RandomFeatureNet(KernelMLP):
    """:class:`KernelMLP` on random Fourier features of standard deviation 2 pi omega_0.

    ``hidden_channels`` must be even.
    """

    def _embedding(self, act_cfg: dict) -> nn.Module:
        return FourierFeatures(self, std=2 * math.pi * self.omega_0)
