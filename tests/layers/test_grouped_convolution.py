"""The convolution of a block against its sum, channel by channel; and that it starts as the identity."""

import torch

from speculators.layers.grouped_convolution import GroupedConvolution

H, TAPS, GROUP, B = 8, 3, 4, 5


def filled():
    generator = torch.Generator().manual_seed(0)
    convolution = GroupedConvolution(H, TAPS, GROUP).double()
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return convolution, torch.randn(2, B, H, generator=generator, dtype=torch.float64)


def summed(base, kernels, x):
    """y[t, c] = sum over taps j <= t of (base[j, c] + kernel[t, j, group of c]) * x[t - j, c]."""
    y = torch.zeros_like(x)
    for t in range(B):
        for c in range(H):
            for tap in range(min(TAPS, t + 1)):
                y[t, c] += (base[tap, c] + kernels[t, tap, c // GROUP]) * x[t - tap, c]
    return y


def test_both_sides_are_sums_over_the_tokens_before_in_the_block():
    convolution, x = filled()
    with torch.no_grad():
        read, kept = convolution.before(x)
        given = convolution.after(x.flip(-1), kept)
        for block in range(2):
            kernels = (x[block] @ convolution.kernel_projection.weight.T).view(B, 2, TAPS, H // GROUP)
            base = convolution.base_kernel
            torch.testing.assert_close(read[block], summed(base[0], kernels[:, 0], x[block]))
            torch.testing.assert_close(given[block], summed(base[1], kernels[:, 1], x[block].flip(-1)))


def test_it_starts_as_the_identity():
    convolution, x = filled()
    with torch.no_grad():
        convolution.identity()
        read, kept = convolution.before(x)
        assert torch.equal(read, x)
        assert torch.equal(convolution.after(x, kept), x)


def test_its_gradients_are_those_of_the_sum():
    convolution, x = filled()
    slope = torch.randn(2, B, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(convolved):
        inputs = [x.clone().requires_grad_(), *convolution.parameters()]
        read, kept = convolved(inputs[0])
        given = convolution.after(read.tanh(), kept) if convolved == convolution.before else kept(read.tanh())
        return torch.autograd.grad((given * slope).sum(), inputs)

    def plainly(x):
        kernels = (x @ convolution.kernel_projection.weight.T).view(2, B, 2, TAPS, H // GROUP)
        base = convolution.base_kernel

        def side(number, y):
            return torch.stack([summed(base[number], kernels[block, :, number], y[block]) for block in range(2)])

        return side(0, x), lambda y: side(1, y)

    for own, plain in zip(gradients(convolution.before), gradients(plainly), strict=True):
        torch.testing.assert_close(own, plain)
