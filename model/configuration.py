"""The transformers configuration of a body with a swapped head."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class SwapHeadConfig(PreTrainedConfig):
    """A decoder's own configuration (``text_config``) plus the kind and options of head and objective. ``n_classes`` is the
    number of tokens that can be predicted: the whole vocabulary, unless it ends in padding. ``unknown_distance`` is the distance
    to the nearest class beyond which a position is unknown, ``unknown_fpr`` the share of held-out text that was beyond it when it
    was calibrated; None without. ``taught_width``: of the states of a teacher to which the objective maps the model's."""

    model_type = "swap_head"
    unknown_distance: float | None = None
    unknown_fpr: float | None = None
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (as transformers requires)

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        n_classes: int | None = None,
        taught_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            fields = dict(text_config)
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        # transformers builds one without arguments to find what differs from the defaults.
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("gpt2")
        self.head = dict(head or {"kind": "linear"})
        self.objective = dict(objective or {"kind": "ce"})
        self.n_classes = n_classes if n_classes is not None else self.text_config.vocab_size
        self.taught_width = taught_width
        kwargs.setdefault("tie_word_embeddings", bool(self.head.get("tied", True)))
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(self.text_config, name, None))
        super().__init__(**kwargs)
