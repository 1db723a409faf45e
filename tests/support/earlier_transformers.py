"""Run by the Python of an earlier transformers: what it makes of an exported model, as JSON on standard output.

python earlier_transformers.py DIRECTORY TEXTS.json
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, __version__

directory, texts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory).float().eval()
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
batch = tokenizer(texts[:2], padding=True, return_tensors="pt")
with torch.no_grad():
    generated = model.generate(**batch, max_new_tokens=4, do_sample=False)
    logits = model(torch.arange(3, 60)[None]).logits.float()
print(
    json.dumps(
        {
            "version": __version__,
            "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
            "inputs": sorted(batch),
            "padding_side": tokenizer.padding_side,
            "generated": generated[:, batch["input_ids"].shape[1] :].tolist(),
            "logits": logits[0, -1].tolist(),
            "dtype": str(AutoConfig.from_pretrained(directory).torch_dtype),
        }
    )
)
