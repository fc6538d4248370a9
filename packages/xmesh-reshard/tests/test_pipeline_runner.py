"""Schedules run for real: gradients, order, memory, failures, interruption, measured times."""

import gc
import signal
import threading
import time
import weakref
from itertools import pairwise, product

import numpy as np
import pytest

from xmesh_reshard.pipeline import LocalChannel, Op, Status, assemble, run_device, run_schedule, schedule
from xmesh_reshard.pipeline.channels import Channel, StoppedError
from xmesh_reshard.pipeline.costs import costs

CASES = [
    ("gpipe", {}),
    ("1f1b", {}),
    ("1f1b", {"split_backward": True}),
    ("eager-1f1b", {}),
    ("eager-1f1b", {"split_backward": True}),
    ("interleaved", {"chunks": 2}),
    ("interleaved", {"chunks": 2, "split_backward": True}),
    ("zero-bubble", {}),
    ("zero-bubble", {"max_inflight": 5}),
]


class Linear:
    """A stack of linear layers, one a stage, with its callables; loss = sum of (output * target)."""

    def __init__(self, stages, microbatches, split):
        rng = np.random.default_rng(7)
        self.split, self.stages = split, stages
        self.weights = [rng.standard_normal((4, 4)) for _ in range(stages)]
        self.gradients = [np.zeros((4, 4)) for _ in range(stages)]
        self.inputs = list(rng.standard_normal((microbatches, 3, 4)))
        self.targets = list(rng.standard_normal((microbatches, 3, 4)))
        self.order = [[] for _ in range(stages)]

    def forward(self, stage, k, x):
        return x @ self.weights[stage], x

    def backward(self, stage, k, x, dy):
        dx = dy @ self.weights[stage].T
        if self.split:
            return dx, (x, dy)
        self.weight(stage, k, (x, dy))
        return dx

    def weight(self, stage, k, pending):
        x, dy = pending
        self.order[stage].append(k)
        self.gradients[stage] += x.T @ dy

    def output_gradient(self, k, y):
        return self.targets[k]

    def whole(self):
        """Outputs, gradients of inputs and of weights of the model in one piece, microbatch after microbatch."""
        outputs, dxs, dws = [], [], [np.zeros((4, 4)) for _ in self.weights]
        for x, dy in zip(self.inputs, self.targets, strict=True):
            xs = [x]
            for w in self.weights:
                xs.append(xs[-1] @ w)
            for s in reversed(range(self.stages)):
                dws[s] += xs[s].T @ dy
                dy = dy @ self.weights[s].T
            outputs.append(xs[-1])
            dxs.append(dy)
        return outputs, dxs, dws


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_gradients_are_those_of_the_whole_model_bit_for_bit(kind, options):
    made = schedule(kind, 3, 7, **options)
    model = Linear(made.stages, 7, made.split_backward)
    run = run_schedule(
        made,
        model.forward,
        model.backward,
        model.weight,
        inputs=model.inputs,
        output_gradient=model.output_gradient,
    )
    outputs, dxs, dws = model.whole()
    assert all(np.array_equal(a, b) for a, b in zip(run.outputs, outputs, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(run.input_gradients, dxs, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(model.gradients, dws, strict=True))  # sums in the same order
    assert model.order == [list(range(7))] * made.stages
    timeline = run.timeline
    assert timeline.status is Status.COMPLETE
    assert tuple(tuple(s.instruction for s in spans) for spans in timeline.devices) == made.devices
    assert timeline.peak_inflight() == made.peak_inflight()


def test_skip_connections_carry_activations_and_gradients():
    # y0 = a x; y1 = b y0; y2 = c y1; output = y2 * d + y0 * e, for numbers, so gradients are products.
    a, b, c, d, e = 2.0, 3.0, 5.0, 7.0, 11.0

    def forward(stage, k, x):
        if stage == 0:
            return {1: a * x, 3: a * x}, None
        if stage == 3:
            return d * x[2] + e * x[0], None
        return (b if stage == 1 else c) * x, None

    def backward(stage, k, saved, dy):
        if stage == 3:
            return {2: d * dy, 0: e * dy}
        if stage == 0:
            return a * (dy[1] + dy[3])
        return (b if stage == 1 else c) * dy

    for kind in ("1f1b", "eager-1f1b", "gpipe"):
        run = run_schedule(
            schedule(kind, 4, 5),
            forward,
            backward,
            inputs=[1.0, 2.0, 3.0, 4.0, 5.0],
            output_gradient=lambda k, y: float(k),
            skips=[(0, 3)],
            delay={(0, 3): 0.002, (3, 0): 0.001},
        )
        slope = a * (b * c * d + e)
        assert run.outputs == tuple(slope * x for x in (1.0, 2.0, 3.0, 4.0, 5.0))
        assert run.input_gradients == tuple(slope * k for k in range(5))
        assert {(t.source, t.target) for t in run.timeline.transfers} >= {(0, 3), (3, 0)}


def test_torch_stages():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    stages = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).double() for _ in range(3)]
    batches = [torch.randn(5, 4, dtype=torch.float64) for _ in range(6)]

    def forward(stage, k, x):
        x = x.detach().requires_grad_()
        y = stages[stage](x)
        y = y.square().sum() if stage == 2 else y
        return y.detach(), (x, y)

    def backward(stage, k, saved, dy):
        x, y = saved
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        return dx, (y, dy)

    def weight(stage, k, pending):
        torch.autograd.backward(pending[0], pending[1], inputs=list(stages[stage].parameters()))

    run = run_schedule(schedule("eager-1f1b", 3, 6, split_backward=True), forward, backward, weight, inputs=batches)
    found = [p.grad.clone() for stage in stages for p in stage.parameters()]
    model = torch.nn.Sequential(*stages)
    model.zero_grad()
    for x in (x.requires_grad_() for x in batches):
        model(x).square().sum().backward()
    for mine, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-12, atol=1e-12)
    for dx, x in zip(run.input_gradients, batches, strict=True):
        torch.testing.assert_close(dx, x.grad, rtol=1e-12, atol=1e-12)


class Kept:
    """Something that a forward pass keeps."""


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_activations_are_released_as_the_schedule_says(kind, options):
    made = schedule(kind, 3, 8, **options)
    alive = [weakref.WeakSet() for _ in made.devices]
    peaks = [0] * len(made.devices)

    def forward(stage, k, x):
        kept = Kept()
        device = made.placement[stage]
        alive[device].add(kept)
        peaks[device] = max(peaks[device], len(alive[device]))
        return 0.0, kept

    def backward(stage, k, kept, dy):
        return (0.0, kept) if made.split_backward else 0.0

    gc.disable()  # references alone must do
    try:
        run_schedule(made, forward, backward, lambda stage, k, pending: None)
        assert [len(some) for some in alive] == [0] * len(made.devices)
    finally:
        gc.enable()
    assert tuple(peaks) == made.peak_inflight()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("device ")]


@pytest.mark.parametrize(
    ("at", "where"), [((0, "F"), "F2 of stage 0 on device 0"), ((2, "B"), "B2 of stage 2 on device 2")]
)
def test_an_error_stops_every_stage_with_the_original_exception(at, where):
    error = ZeroDivisionError("mine")

    def step(op, value):
        def run(stage, k, *_):
            if (stage, op) == at and k == 2:
                raise error
            return value

        return run

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        run_schedule(schedule("1f1b", 4, 8), step("F", (0.0, None)), step("B", 0.0), delay=0.001)
    assert caught.value is error
    assert error.__notes__ == [f"in {where}"]
    assert threads() == []


def test_ctrl_c_leaves_no_thread_behind():
    def forward(stage, k, x):
        if (stage, k) == (1, 1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return 0.0, None

    with pytest.raises(KeyboardInterrupt):
        # Without the signal the links would keep it busy for hours.
        run_schedule(schedule("gpipe", 3, 4), forward, lambda *_: 0.0, delay=[0.0, 3600.0])
    assert threads() == []


def sleeper(seconds):
    def run(stage, k, *_):
        time.sleep(seconds)
        return (0.0, None) if seconds == 0.004 else 0.0

    return run


def test_delays_act_as_in_the_simulator():
    # Starts are never before those of the simulator, because a sleep never ends early; nothing is asserted above that.
    for kind, overlap in product(("1f1b", "eager-1f1b"), (True, False)):
        made = schedule(kind, 3, 5)
        run = run_schedule(made, sleeper(0.004), sleeper(0.008), delay=0.006, overlap=overlap)
        model = made.simulate(0.004, 0.008, 0.006, overlap=overlap)
        for measured, expected in zip(run.timeline.devices, model.devices, strict=True):
            assert all(a.start >= b.start - 1e-6 for a, b in zip(measured, expected, strict=True))
        assert run.timeline.lower_bound is None
        assert run.timeline.gap is None
        assert all(t.blocking is not overlap for t in run.timeline.transfers)
        assert all(t.end - t.start == pytest.approx(0.006) for t in run.timeline.transfers)


def test_a_link_carries_one_message_at_a_time_in_order():
    made = schedule("gpipe", 2, 6)
    run = run_schedule(made, lambda *_: (0.0, None), lambda *_: 0.0, delay=0.003)
    for source in (0, 1):
        mine = [t for t in run.timeline.transfers if t.source == source]
        assert [t.message.microbatch for t in mine] == list(range(6))
        assert all(b.start >= a.end for a, b in pairwise(mine))


def test_the_loop_of_one_device_with_a_channel_of_ones_own():
    class Plain:
        """A channel without any of LocalChannel."""

        def __init__(self):
            self.mail, self.changed = {}, threading.Condition()

        def send(self, message, payload):
            with self.changed:
                self.mail[message] = payload
                self.changed.notify_all()

        def receive(self, message):
            with self.changed:
                self.changed.wait_for(lambda: message in self.mail, timeout=10)
                return self.mail.pop(message)

    made = schedule("eager-1f1b", 2, 4)
    model = Linear(2, 4, split=False)
    channel = Plain()
    assert isinstance(channel, Channel)
    assert isinstance(LocalChannel(made.placement, costs(2, 0, 0)), Channel)
    runs = [None, None]

    def work(device):
        runs[device] = run_device(
            made,
            device,
            channel,
            model.forward,
            model.backward,
            inputs=model.inputs,
            output_gradient=model.output_gradient,
        )

    workers = [threading.Thread(target=work, args=(d,)) for d in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    outputs, dxs, _ = model.whole()
    whole = assemble(made, runs)
    assert all(np.array_equal(a, b) for a, b in zip(whole.outputs, outputs, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(whole.input_gradients, dxs, strict=True))
    assert len(whole.timeline.transfers) == 8
    assert channel.mail == {}


def test_a_stopped_channel_wakes_those_who_wait():
    made = schedule("gpipe", 2, 1)
    channel = LocalChannel(made.placement, costs(2, 0, 0))
    failed = []

    def work():
        try:
            run_device(made, 1, channel, lambda *_: (0.0, None), lambda *_: 0.0)
        except StoppedError as error:
            failed.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    channel.stop()
    worker.join(30)
    assert failed == ["stopped while waiting for the activation of microbatch 0 from stage 0 to stage 1"]


def test_what_does_not_fit_the_schedule_is_refused():
    made = schedule("zero-bubble", 2, 3)
    with pytest.raises(ValueError, match="give the callable weight"):
        run_schedule(made, sleeper(0), sleeper(0))
    with pytest.raises(ValueError, match="one for each of 3 microbatches, got 1"):
        run_schedule(made, sleeper(0), sleeper(0), sleeper(0), inputs=[1.0])
    with pytest.raises(ValueError, match="a skip connection goes from a stage to a later one"):
        run_schedule(schedule("gpipe", 2, 3), sleeper(0), sleeper(0), skips=[(1, 0)])
    with pytest.raises(ValueError, match="not in skips"):
        run_schedule(schedule("gpipe", 3, 3), sleeper(0), sleeper(0), delay={(0, 2): 1.0})
    with pytest.raises(TypeError, match=r"sends to stages \[1, 2\]: give a mapping with these keys, got float"):
        run_schedule(schedule("gpipe", 3, 3), lambda *_: (0.0, None), sleeper(0), skips=[(0, 2)])


def test_one_device_and_one_microbatch():
    run = run_schedule(schedule("1f1b", 1, 1), lambda s, k, x: (x, x), lambda s, k, saved, dy: saved, inputs=["x"])
    assert (run.outputs, run.input_gradients, run.timeline.transfers) == (("x",), ("x",), ())
    assert [s.instruction.op for s in run.timeline.devices[0]] == [Op.F, Op.B]
