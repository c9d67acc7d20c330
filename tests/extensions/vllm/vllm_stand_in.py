"""What Rankscope uses of ``vllm serve``, by transformers and PEFT: for machines without vLLM.

The process starts at once, as its models are in the process of the tests (:func:`writing`), which
it asks. The environment variable ``STAND_IN`` is the beginning of its files' paths.
``STAND_IN_FAULT`` plants a fault:
``dies-once`` (at the fifth request for answers), ``broken-lora`` (adapters that it cannot read),
``scaled`` (adapters count eight times), ``refuses-later`` (every request for answers but the
first), ``no-token_ids`` (answers without them), ``one-less`` (no answer to the last prompt),
``hangs`` (no reply at all).
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from xmlrpc.client import ServerProxy
from xmlrpc.server import SimpleXMLRPCServer

FAULT, PLACE = os.environ.get("STAND_IN_FAULT", ""), os.environ.get("STAND_IN", "")


@cache
def model_of(folder: str, dtype: str, adapter: str | None, fault: str) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if adapter is None:
        return model
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    for module in tuned.modules() if fault == "scaled" else ():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {key: 8 * value for key, value in module.scaling.items()}
    return tuned


def complete(
    model: tuple[str, str, str | None, str], tokenizer: str, body: dict[str, Any]
) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoTokenizer

    decode, choices = AutoTokenizer.from_pretrained(tokenizer).decode, []
    for prompt in body["prompt"]:
        ids, logprobs, reason = list[int](), list[float](), "length"
        while len(ids) < body["max_tokens"] and reason == "length":
            with torch.inference_mode():
                logits = model_of(*model)(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            ids.append(int(logits.argmax()))
            logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
            text = decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if ids[-1] in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                reason = "stop"
        of = {"token_ids": ids, "finish_reason": reason, "logprobs": {"token_logprobs": logprobs}}
        choices.append({"index": len(choices), **of})
    return choices


@contextmanager
def writing() -> Iterator[str]:
    """Models write answers for the servers that ask at this address."""
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True) as models:
        models.register_function(complete)
        Thread(target=models.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{models.server_address[1]}"
        models.shutdown()


def serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("folder")
    for option in "host port tokenizer served-model-name generation-config dtype".split():
        parser.add_argument(f"--{option}", required=True)
    for option in "max-model-len max-lora-rank max-loras".split():
        parser.add_argument(f"--{option}", type=int)
    for option in ("enable-lora", "enforce-eager"):
        parser.add_argument(f"--{option}", action="store_true")
    given = parser.parse_args()
    adapters, requests = dict[str, str | None]({given.served_model_name: None}), list[object]()

    def load(body: dict[str, Any]) -> str:
        path = Path(body["lora_path"])
        settings = json.loads((path / "adapter_config.json").read_text("utf-8"))
        assert given.enable_lora
        assert settings["r"] <= given.max_lora_rank
        adapters[body["lora_name"]] = str(path)
        return f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        died = Path(f"{PLACE}.died")
        if FAULT == "hangs":
            Event().wait()
        if FAULT == "dies-once" and len(requests) == 5 and not died.exists():
            died.touch()
            os._exit(3)
        sent = body["temperature"], body["ignore_eos"], body["return_token_ids"]
        assert sent == (0, True, True)
        assert max(map(len, body["prompt"])) + body["max_tokens"] <= given.max_model_len
        model = given.folder, given.dtype, adapters[body["model"]], FAULT
        models = ServerProxy(os.environ["STAND_IN_MODELS"], allow_none=True)
        choices: Any = models.complete(model, given.tokenizer, body)
        if FAULT == "no-token_ids":
            choices = [choice | {"token_ids": None} for choice in choices]
        return {"choices": choices[: -1 if FAULT == "one-less" else None][::-1]}  # in no order

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, content: dict[str, Any] | str) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply(200, "")

        def do_POST(self) -> None:
            assert self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/load_lora_adapter" and FAULT == "broken-lora":
                self.reply(500, {"error": "expected other modules"})
            elif self.path == "/v1/load_lora_adapter":
                self.reply(200, load(body))
            elif self.path == "/v1/completions":
                requests.append(body)
                if FAULT == "refuses-later" and len(requests) > 1:
                    self.reply(400, {"error": "too many prompts"})
                else:
                    self.reply(200, answer(body))
            else:
                self.reply(404, {"detail": "Not Found"})

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Path(f"{PLACE}.pids").open("a", encoding="utf-8") as pids:
        print(os.getpid(), file=pids)
    ThreadingHTTPServer((given.host, int(given.port)), Handler).serve_forever()


if __name__ == "__main__":
    serve()
