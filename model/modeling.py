"""A causal language model: any transformers decoder as body, with a head and an objective of this project. Shapes: B batch,
T positions, N = B*T tokens, V vocabulary, D width."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from .chunked import IGNORE_INDEX, TokenLosses, chunk_rows, loss_of_features
from .configuration import SwapHeadConfig
from .heads import Head
from .objectives import Objective, Penalty, StepState, WithPenalties
from .teaching import Taught
from .unknown import StopAtUnknown, nearest_distances
from .zoo import HEADS, OBJECTIVES


@dataclass
class SwapHeadOutput(CausalLMOutputWithPast):
    """A transformers model output, plus ``losses`` if ``skip_logits`` requests them instead of logits."""

    losses: TokenLosses | None = None
    """The sums and per-token values behind ``loss``."""
    nearest: Tensor | None = None
    """min_k d_k (B, T), if requested: the distance of each hidden state to the nearest class (unknown.py)."""


def build(table: dict[str, Any], choice: dict[str, Any], *arguments: Any) -> Any:
    """Build the class registered as ``choice["kind"]`` from ``arguments`` and its options; KeyError if unknown."""
    options = dict(choice)
    kind = options.pop("kind")
    if kind not in table:
        raise KeyError(
            f"unknown kind {kind!r}; registered: {', '.join(sorted(table))} (import the plugin that defines it)"
        )
    return table[kind](*arguments, table[kind].Options(**options))


class SwapHeadForCausalLM(PreTrainedModel, GenerationMixin):
    """Body, head and objective behind the transformers interface; with a linear head and cross-entropy it equals the stock
    model.

    ``lm_head`` is an output module whose ``weight`` is the input embedding itself if tied, so that saving, loading,
    generation and sharding work as usual. What a stock model does to its logits belongs to the head here: Gemma 2's
    ``final_logit_softcapping`` is ``soft_cap``; the logit scales of Cohere and Granite and auxiliary losses of experts are
    left out. Logits are always float32, and -inf for padding of the vocabulary, which the Trainer's own label smoothing
    would average over: use the objective's.
    """

    config_class = SwapHeadConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: SwapHeadConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = AutoModel.from_config(text)
        # Not hidden_size: OPT's, for one, need not be the width of its last hidden states.
        width = self.model.get_input_embeddings().weight.shape[1]
        self.lm_head: Head = build(HEADS, config.head, width, text.vocab_size)
        self.lm_head.n_classes = config.n_classes
        self.set_objective(config.objective)
        self.projection: nn.Linear | None = None
        """Of hidden states to the width of a teacher's, for an objective that compares them; not used in generation."""
        if self.objective.projects:
            if config.taught_width is None:
                raise ValueError("taught_width: the objective maps hidden states to a teacher's; give their width")
            with torch.random.fork_rng(devices=[]):  # the head begins as it does without one
                self.projection = nn.Linear(width, config.taught_width, bias=False)
        self.penalties: Sequence[Penalty] = ()
        """Added to the objective in training mode."""
        self.negatives: Objective | None = None
        """The loss of the rows that a call names as negatives."""
        self.penalised_evaluation = False
        """Whether an evaluation has the objective of training, penalties included, as when a step's loss is measured again
        after it."""
        if config.tie_word_embeddings:
            # The name of the input embedding differs between bodies: wte, embed_tokens, ...
            source = next(n for n, m in self.model.named_modules() if m is self.model.get_input_embeddings())
            self._tied_weights_keys = {"lm_head.weight": f"model.{source}.weight"}
        self.post_init()

    def set_objective(self, choice: dict[str, Any]) -> None:
        """Train with another objective from now on, with its state from the start."""
        self.config.objective = choice
        self.objective: Objective = build(OBJECTIVES, choice)
        self.objective_state = self.objective.state

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StepState):
            module.reset_parameters()
        elif isinstance(module, Head):
            if not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.normal_(module.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
            module.reset_parameters()
        elif module is self.projection:
            if not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.eye_(module.weight)
        else:
            super()._init_weights(module)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head.weight = new_embeddings.weight  # type: ignore[assignment]
        if getattr(self.lm_head, "bias", None) is not None and getattr(new_embeddings, "bias", None) is not None:
            self.lm_head.bias = new_embeddings.bias

    def _get_resized_lm_head(self, old_lm_head: nn.Module, *args: Any, **kwargs: Any) -> nn.Linear:
        plain = nn.Linear(1, 1)  # the only class transformers can resize
        plain.weight, plain.bias = old_lm_head.weight, getattr(old_lm_head, "bias", None)  # type: ignore[assignment]
        resized: nn.Linear = super()._get_resized_lm_head(plain, *args, **kwargs)
        return resized

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; all ``new_num_tokens`` become classes, padding beyond them does not."""
        embedding: nn.Embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens is not None:
            self.lm_head.n_classes = self.config.n_classes = new_num_tokens
            self.lm_head.resize(len(embedding.weight))
        return embedding

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool = False,
        statistics: bool = False,
        negative_rows: Tensor | None = None,
        nearest: bool = False,
        **kwargs: Any,
    ) -> SwapHeadOutput:
        """Logits (B, T, V) in float32, and with ``labels`` or ``shift_labels`` (B, T) the loss.

        ``labels`` are shifted here, ``shift_labels`` are each position's target; -100 is ignored. ``loss`` is the objective
        summed over tokens, divided by ``num_items_in_batch`` if given, else by the number of valid tokens.
        ``logits_to_keep``: only that many last positions (or those positions), 0 for all; the loss always covers all.
        ``skip_logits``: if there is a loss, return ``losses`` instead of logits, with telemetry of the logits if
        ``statistics``. ``negative_rows`` (K,): the sequences that are negatives, whose targets are all -100; each of their
        positions adds its own loss, over the same divisor. ``nearest``: also return the distances to the nearest classes. Other
        arguments go to the body.
        """
        # What transformers looks for in a signature decides what it does: position_ids for padded generation, no second
        # name with "label" in it for the Trainer's evaluation, no cache_position.
        shift_labels = kwargs.pop("shift_labels", None)
        kwargs["return_dict"] = True
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name) is None and getattr(self.config, name):
                kwargs[name] = True
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=getattr(self.config, "use_cache", None) if use_cache is None else use_cache,
            **kwargs,
        )
        h_BTD = body.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
        loss, losses = None, None
        if shift_labels is None:
            logits = self.lm_head(h_BTD[:, keep])
        else:
            objective, aligns = self.trained_objective(), self.objective.aligns and self._trains
            reads, taught = objective.uses_rows or objective.uses_auxiliary, None
            if objective.teacher is not None and (reads or aligns):
                taught = objective.teacher(input_ids, attention_mask=attention_mask, position_ids=position_ids)
            read = taught if reads else None
            losses, logits = self._losses(
                h_BTD, shift_labels, None if skip_logits else keep, statistics, read, negative_rows
            )
            if aligns and taught is not None:
                self._align(losses, h_BTD.flatten(0, 1), taught, statistics)
            items = losses.valid_N.sum() if num_items_in_batch is None else num_items_in_batch
            total = losses.objective_sum
            if losses.negatives is not None:
                total = total + losses.negatives.objective_sum
            loss = total / (items.to(h_BTD.device) if isinstance(items, Tensor) else items)
        return SwapHeadOutput(
            loss=loss,
            logits=logits,
            past_key_values=getattr(body, "past_key_values", None),
            hidden_states=getattr(body, "hidden_states", None),
            attentions=getattr(body, "attentions", None),
            losses=losses if skip_logits else None,
            nearest=self._nearest(h_BTD) if nearest else None,
        )

    def trained_objective(self) -> Objective:
        """The objective, with the penalties where they count."""
        return WithPenalties(self.objective, self.penalties) if self.penalties and self._trains else self.objective

    def _losses(
        self,
        h_BTD: Tensor,
        y_BT: Tensor,
        keep: slice | Tensor | None,
        statistics: bool,
        taught: Taught | None,
        negative_rows: Tensor | None,
    ) -> tuple[TokenLosses, Tensor | None]:
        """Losses against the targets ``y_BT``, and logits of the positions ``keep``, from one set of features."""
        y_N = y_BT.reshape(-1).to(h_BTD.device)
        objective, training = self.trained_objective(), self._trains

        def both(head: Head, f_ND: Tensor) -> tuple[TokenLosses, Tensor | None]:
            losses = loss_of_features(head, objective, f_ND, y_N, statistics, taught=taught, training=training)
            f_BTD = f_ND.unflatten(0, h_BTD.shape[:2])
            if negative_rows is not None:
                losses = replace(losses, negatives=self._negative_losses(head, f_BTD, negative_rows, statistics))
            return losses, None if keep is None else head.true_logits(f_BTD[:, keep])

        return self.lm_head(h_BTD, both)

    @property
    def _trains(self) -> bool:
        """Whether the loss is that of training."""
        return self.training or self.penalised_evaluation

    def _align(self, losses: TokenLosses, h_ND: Tensor, taught: Taught, statistics: bool) -> None:
        """Add the objective's part of all hidden states together, in shares of the tokens that count."""
        geometry = self.objective.of_states(h_ND, taught.h_ND, losses.valid_N, self.projection)
        part = self.objective.weight_of_states * geometry
        losses.objective_sum = losses.objective_sum + part * losses.valid_N.sum()
        losses.objective_N = losses.objective_N + part.detach()
        if statistics:
            losses.statistics["objective/geometry"] = geometry.detach().expand(len(h_ND))

    def _negative_losses(self, head: Head, f_BTD: Tensor, rows_K: Tensor, statistics: bool) -> TokenLosses:
        """Losses of all positions of these rows. Raises ValueError if the model has no loss for them."""
        if self.negatives is None:
            raise ValueError("negative_rows: the model has no loss for negatives; set model.negatives (negative_loss)")
        f_ND = f_BTD[rows_K].flatten(0, 1)
        y_N = torch.zeros(len(f_ND), dtype=torch.long, device=f_ND.device)
        if len(y_N) == 0:  # one position that does not count: what is measured has the same names on all ranks
            f_ND, y_N = f_BTD[0, :1], y_N.new_full((1,), IGNORE_INDEX)
        return loss_of_features(head, self.negatives, f_ND, y_N, statistics, training=False)

    def _nearest(self, h_BTD: Tensor) -> Tensor:
        def distances(head: Head, f_ND: Tensor) -> Tensor:
            return nearest_distances(head, f_ND, chunk_rows(len(f_ND), head.n_classes, f_ND.device.type))

        found: Tensor = self.lm_head(h_BTD, distances)
        return found.view(h_BTD.shape[:2])

    @torch.no_grad()
    def unknown(self, input_ids: Tensor, **arguments: Any) -> Tensor:
        """Whether each position (B, T) is unknown: its hidden state is farther than the threshold from every class.
        ``arguments``: for the body. Raises ValueError without a threshold."""
        found: Tensor = self(input_ids=input_ids, nearest=True, logits_to_keep=1, **arguments).nearest
        return found > self._threshold()

    def stop_at_unknown(self, stop: bool = True) -> StopAtUnknown:
        """A stopping criterion for ``generate``, to be used as ``with model.stop_at_unknown() as watch: model.generate(...,
        stopping_criteria=[watch])``; with ``stop=False`` it only notes what is unknown. Raises ValueError without a threshold."""
        return StopAtUnknown(self.lm_head, self._threshold(), stop)

    def _threshold(self) -> float:
        threshold: float | None = self.config.unknown_distance
        if threshold is None:
            raise ValueError(
                "the model has no threshold of what it knows: set config.unknown_distance to what "
                "python -m analysis.unknown finds, or train with checkpoint.unknown_fpr"
            )
        return threshold


# The Trainer looks up here whose labels to shift for label smoothing, and pipelines which models they support.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[SwapHeadConfig.model_type] = SwapHeadForCausalLM.__name__


def new_model(config: SwapHeadConfig, seed: int) -> SwapHeadForCausalLM:
    """A newly initialised model whose body depends on ``seed`` alone, not on the head or the objective."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SwapHeadForCausalLM(config)
        model.lm_head.reset_weight()
    return model


def blocks(body: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks of a decoder: its longest ModuleList. Raises AttributeError if it has none."""
    stacks = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise AttributeError(f"{type(body).__name__} has no stack of transformer blocks")
    return max(stacks, key=len)


def final_norm(body: nn.Module) -> nn.Module:
    """The normalisation after the last block: the last one beside the stack of blocks. AttributeError if there is none."""
    stack = blocks(body)
    parent = next(m for m in body.modules() if stack in m.children())
    norms = [m for name, m in parent.named_children() if "norm" in type(m).__name__.lower() or "norm" in name]
    if not norms:
        raise AttributeError(f"{type(body).__name__} has no normalisation after its last block")
    return norms[-1]
