"""The training run: transformers' Trainer with our loss, our checkpoints and an exact resume.

The Trainer keeps what it does well: processes and sharding (accelerate), accumulation, clipping, schedule. Replaced are
the loss, the checkpoint's form (no pickles, see `checkpoint`), and the log.

What makes a resume exact: the samples are a function of the step alone; model, moments, schedule and every random
generator are put back; the generators are put back at the first step, after the data loader has drawn from them.
SIGTERM ends a single process inside a step, where nothing but gradients is half done; the checkpoint then holds the
generators as they were when that step began. With several processes all agree at the end of each step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from core.console import duration
from core.errors import ParsimonyError
from core.files import read_json
from pipeline.config import DistillConfig
from pipeline.distill.background import BackgroundWriter
from pipeline.distill.checkpoint import Checkpoint, Meta, PlanMeta
from pipeline.distill.data import Samples, collate
from pipeline.distill.losses import IGNORED
from pipeline.distill.module import DistillModule, Teacher
from pipeline.distill.preemption import Books, InterruptedTrainingError, StopSignal
from pipeline.distill.train_state import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Buffers,
    RandomStates,
    moments_of,
    put_back,
    put_back_sharded,
    random_states,
    set_random_states,
    sharded_state,
    state_bytes,
    weights_of,
)

if TYPE_CHECKING:
    from pipeline.distill.checkpoint import Files

TRAINER_STATE = "trainer_state.json"


class DivergedError(ParsimonyError):
    """The loss is not a number, or has run away; the message names the last good checkpoint."""


class DistillTrainer(Trainer):  # type: ignore[misc]
    """Trainer with a teacher beside the student."""

    def __init__(
        self,
        module: DistillModule,
        args: TrainingArguments,
        samples: Samples,
        *,
        config: DistillConfig,
        teacher: Teacher | None,
        writer: BackgroundWriter,
        books: Books,
        stop: StopSignal,
        meta: PlanMeta,
        say: Callable[[str], None],
        flops: tuple[float, float],
        end_token: int,
    ) -> None:
        """`meta` goes into every manifest; `flops` are those of a token and the machine's per second."""
        self._distill, self._teacher, self._writer, self._books, self._stop = config, teacher, writer, books, stop
        self._meta, self._say, self._flops, self._end_token = meta, say, flops, end_token
        self._buffers = Buffers()
        self._resumed_random: RandomStates | None = None
        self._step_random: RandomStates | None = None
        self.curve: list[dict[str, float]] = []
        self._window_loss: Tensor | None = None
        self._step_window: Tensor | None = None
        self._window_steps = 0
        self._timed_steps = 0
        self._window_started = time.monotonic()
        self._saved_at: float | None = None
        self._saved_step: int | None = None
        super().__init__(
            model=module,
            args=args,
            train_dataset=samples,
            data_collator=collate,
            callbacks=[_Steps(self)],
        )
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per learnt token of the whole optimizer step, this process's share of it."""
        assert num_items_in_batch is not None
        if self._distill.data.mode == "on_policy":
            inputs = self._rollout(inputs)
        side = self._teacher(inputs["input_ids"]) if self._teacher is not None else {}
        total = model(**inputs, **side)["loss"]
        # Gradients are averaged over processes, the divisor counts the tokens of all of them.
        loss = total / num_items_in_batch * self.args.world_size
        self._window_loss = loss.detach() if self._window_loss is None else self._window_loss + loss.detach()
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _rollout(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student writes on after each text's opening (GKD); tokens after its end-of-sequence are not learnt."""
        data = self._distill.data
        if data.on_policy_fraction < 1 and float(torch.rand(())) >= data.on_policy_fraction:
            return inputs
        opening = inputs["input_ids"][:, : data.prompt_tokens]
        length = inputs["input_ids"].shape[1]
        module = self.accelerator.unwrap_model(self.model)
        student = module.student
        was_training = student.training
        student.eval()
        with self.accelerator.autocast():
            written = student.generate(
                opening,
                attention_mask=torch.ones_like(opening),
                do_sample=True,
                temperature=data.sampling_temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length + 1 - data.prompt_tokens,
                pad_token_id=self._end_token,
                eos_token_id=self._end_token,
                use_cache=True,
            )
        student.train(was_training)
        padded = torch.full((len(opening), length + 1), self._end_token, device=opening.device)
        padded[:, : written.shape[1]] = written
        labels = padded[:, 1:].clone()
        labels[:, : data.prompt_tokens - 1] = IGNORED
        ended = (labels == self._end_token).int()
        labels[(ended.cumsum(dim=1) - ended) > 0] = IGNORED
        return {"input_ids": padded[:, :-1], "labels": labels}

    # ---- one step

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        """A micro-batch. In a single process SIGTERM ends it at once: nothing but gradients is half done."""
        if self.args.world_size > 1:
            return super().training_step(*args, **kwargs)
        with self._stop:
            return super().training_step(*args, **kwargs)

    def step_begins(self) -> None:
        """Called before an optimizer step's first micro-batch."""
        if self._resumed_random is not None:
            set_random_states(self._resumed_random)
            self._resumed_random = None
        if self._timed_steps == 0:
            self._window_started = time.monotonic()
        self._step_random = random_states()
        self._step_window = self._window_loss

    def step_ended(self) -> bool:
        """Called after an optimizer step; returns whether all processes are to stop."""
        step = self.state.global_step
        self._step_random = None
        self._window_steps += 1
        self._timed_steps += 1
        if step % self._distill.train.log_every_steps == 0 or step == self.state.max_steps:
            self._log_point(step)
        if self.args.process_index == 0:
            self._books.beat(step)
        return self._agreed_to_stop()

    def _agreed_to_stop(self) -> bool:
        if self.args.world_size == 1:
            return self._stop.received
        flag = torch.tensor([float(self._stop.received)], device=self.args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _log_point(self, step: int) -> None:
        assert self._window_loss is not None
        loss = self._window_loss
        if self.args.world_size > 1:
            loss = self.accelerator.gather(loss.reshape(1)).mean()
        mean = float(loss) / self._window_steps
        now = time.monotonic()
        seconds = now - self._window_started
        tokens = self._distill.train.batch_size * self._distill.data.length
        rate = self._timed_steps * tokens / seconds  # of this attempt; the window may have begun in another one
        self._check_loss(mean, step)
        self.curve.append({"step": step, "loss": mean, "tokens_seen": step * tokens, "tokens_per_s": rate})
        self._window_loss, self._window_steps, self._timed_steps = None, 0, 0
        if self.args.process_index == 0:
            self._say(self._line(step, mean, rate, (self.state.max_steps - step) * tokens / rate, now))

    def _line(self, step: int, loss: float, rate: float, left_s: float, now: float) -> str:
        per_token, peak = self._flops
        age = "no checkpoint yet" if self._saved_at is None else f"checkpoint {duration(now - self._saved_at)} old"
        used = 100 * rate * per_token / (peak * self.args.world_size)
        return (
            f"step {step}/{self.state.max_steps}: loss {loss:.4f}, {rate:.0f} tokens/s, {used:.0f}% of the machine's "
            f"FLOP/s, {duration(left_s)} left, {age}"
        )

    def _check_loss(self, loss: float, step: int) -> None:
        """Stop on NaN or divergence.

        Raises:
            DivergedError: names the last good checkpoint.

        """
        lowest = min((point["loss"] for point in self.curve), default=loss)
        factor = self._distill.train.diverge_factor
        if math.isfinite(loss) and (loss <= factor * lowest or lowest <= 0):
            return
        if self.args.process_index == 0:
            self._writer.wait()
        last = self._writer.written[-1].step if self._writer.written else self._books.current.resumed_step
        good = f"step {last}" if last else "none"
        what = f"has grown to {loss:.4g}, over {factor:g} times its lowest ({lowest:.4g})"
        what = what if math.isfinite(loss) else "is not a number"
        raise DivergedError(
            f"the loss {what} at step {step}; last good checkpoint: {good}\n"
            "  -> a lower distill.train.learning_rate\n  -> a longer distill.train.warmup_fraction"
        )

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: object = None) -> None:
        """Take the state now; write it beside the training."""
        self.save_now(random_states())

    def save_now(self, generators: RandomStates) -> None:
        """Take a checkpoint of the last whole step, with these random states; every process takes part."""
        step = self.state.global_step
        # The Trainer saves at its last step, and so does `run_training`: the second time there is nothing new.
        if step in (0, self._saved_step):
            return
        if self._window_loss is not None and not torch.isfinite(self._window_loss).all():
            self._check_loss(float("nan"), step)
        self._saved_step = step
        mine = {
            "random": generators,
            "window": None if self._window_loss is None else [float(self._window_loss), self._window_steps],
        }
        everyone = [mine]
        if self.args.world_size > 1:
            # Every process has random generators of its own; the first one writes them all.
            everyone = [{} for _ in range(self.args.world_size)]
            torch.distributed.all_gather_object(everyone, mine)
        if self.args.process_index == 0:
            self._writer.wait()  # its buffers are about to be filled again
        if self.is_fsdp_enabled:
            weights, moments, groups = sharded_state(self.model, self.optimizer.optimizer)
        else:
            module = self.accelerator.unwrap_model(self.model)
            weights = weights_of(module)
            moments, groups = moments_of(module, self.optimizer.optimizer)
        if self.args.process_index != 0:
            return
        copies = self._buffers.copy({**{f"w/{key}": value for key, value in weights.items()}, **moments})
        state = {
            "step": step,
            # The lambdas are functions, made anew from the settings.
            "scheduler": {k: v for k, v in self.lr_scheduler.state_dict().items() if k != "lr_lambdas"},
            "optimizer_groups": groups,
            "processes": everyone,
            "data_position": step * self._distill.train.batch_size,
            "curve": self.curve,
        }
        files: Files = {
            MODEL_FILE: {key.removeprefix("w/"): value for key, value in copies.items() if key.startswith("w/")},
            OPTIMIZER_FILE: {key: value for key, value in copies.items() if not key.startswith("w/")},
            STATE_FILE: state_bytes(state),
            TRAINER_STATE: json.dumps(dataclasses.asdict(self.state)).encode(),
        }
        meta: Meta = {**self._meta, "useful_s": self._books.useful_s, "attempt": self._books.current.number}
        self._writer.submit(step, files, meta)
        self._saved_at = time.monotonic()

    def save_in_grace(self) -> str:
        """After SIGTERM: a checkpoint of the last whole step, if it can be written in time. Says what is there now."""
        generators = self._step_random or random_states()
        if self._step_random is not None:  # inside a step: what its micro-batches added does not count
            self._window_loss = self._step_window
        in_time = self.args.world_size > 1 or self._stop.left_s > 0  # several processes must all do the same
        if self._distill.spot.save_on_sigterm and in_time:
            self.save_now(generators)
        self._writer.wait()
        last = self._writer.written[-1].step if self._writer.written else self._books.current.resumed_step
        kept = f"checkpoint of step {last} is written" if last else "no step was done, there is no checkpoint"
        return f"SIGTERM at step {self.state.global_step}: {kept}"

    def weights(self) -> dict[str, Tensor]:
        """The student's weights by its own names; every process takes part, the first one gets them."""
        if self.is_fsdp_enabled:
            found = sharded_state(self.model, self.optimizer.optimizer)[0]
        else:
            found = weights_of(self.accelerator.unwrap_model(self.model))
        prefix = "student."
        return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing yet: weights are put back with the moments, once the model is wrapped."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing yet: generators are put back when the first step begins."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Put everything back."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        state = read_json(folder / STATE_FILE)
        if self.is_fsdp_enabled:
            put_back_sharded(self.model, self.optimizer.optimizer, folder)
        else:
            put_back(self.accelerator.unwrap_model(self.model), self.optimizer.optimizer, folder)
        scheduler = self.lr_scheduler.state_dict()
        self.lr_scheduler.load_state_dict({**scheduler, **state["scheduler"]})
        assert state["data_position"] == state["step"] * self._distill.train.batch_size
        mine = state["processes"][self.args.process_index]
        self._resumed_random = mine["random"]
        self.curve = state["curve"]
        if mine["window"] is not None:
            loss, self._window_steps = mine["window"]
            self._window_loss = torch.tensor(loss, device=self.args.device)
        self._saved_step, self._saved_at = state["step"], time.monotonic()


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when optimizer steps begin and end."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The books open when the first step is about to run."""
        if args.process_index == 0:
            self._trainer._books.begin()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Generators are noted."""
        self._trainer.step_begins()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Point of the curve, heartbeat, and the end where SIGTERM asks for it."""
        if self._trainer.step_ended():
            control.should_training_stop = True
            control.should_save = False
        return control


def run_training(trainer: DistillTrainer, found: Checkpoint | None) -> None:
    """Train to the end, from the checkpoint that was found.

    Raises:
        InterruptedTrainingError: SIGTERM came first; its message says which checkpoint is written.
        DivergedError: the loss ran away.

    """
    try:
        trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
    except InterruptedTrainingError:
        raise InterruptedTrainingError(trainer.save_in_grace()) from None
    if trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedTrainingError(trainer.save_in_grace())
    trainer.save_now(random_states())
    trainer._writer.wait()
