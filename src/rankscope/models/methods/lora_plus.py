"""LoRA+ (Hayou et al., 2402.12354): LoRA whose B has a higher learning rate than A."""

from rankscope.models.methods.lora import LoraMethod


class LoraPlusMethod(LoraMethod):
    name = "lora+"
    label = "LoRA+"
    summary = "`lora` whose B trains at `lr_ratio` times the learning rate of A (2402.12354)."
    arm_fields = (*LoraMethod.arm_fields, "lr_ratio")
    field_defaults = {"lr_ratio": 16.0}
