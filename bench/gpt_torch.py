"""The bench's model, data and optimizer in PyTorch: what every script here shares.

GPT-2 style: pre-norm, learned positions, biases, tanh GELU, untied head, no dropout; initial weights drawn as
Phalanx draws them. Times are not taken here.
"""
import json
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self, embed, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embed, 3 * embed)
        self.out = nn.Linear(embed, embed)

    def forward(self, x):
        batch, seq, embed = x.shape
        q, k, v = (t.reshape(batch, seq, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, seq, embed))


class Block(nn.Module):
    def __init__(self, embed, heads):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(embed), Attention(embed, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(embed), nn.Linear(embed, 4 * embed), nn.Linear(4 * embed, embed)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, embed, heads, sequence, vocab):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, embed), nn.Embedding(sequence, embed)
        self.blocks = nn.ModuleList(Block(embed, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(embed), nn.Linear(embed, vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("attention.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.position.weight, std=0.01)

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Bench:
    """One process's model, optimizer and tokens, by the settings that the bench wrote."""

    def __init__(self, path, precision):
        with open(path) as file:
            self.settings = json.load(file)
        self.bf16 = precision == "bf16"
        shape = ("layers", "embed", "heads", "sequence", "vocab")
        torch.manual_seed(1)
        self.model = Gpt(*(self.settings[key] for key in shape))
        with open(self.settings["tokens"], "rb") as file:
            tokens = torch.frombuffer(bytearray(file.read()), dtype=torch.int32)
        self.windows = tokens.view(-1, self.settings["sequence"] + 1)

    def optimizer(self):
        s = self.settings
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": s["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=s["lr"], betas=tuple(s["betas"]), eps=s["eps"], fused=True)

    def batch(self, step, first, size, total):
        """Rows `first .. first + size` of the `total` rows of a step, counted from 0, as tokens and targets."""
        row = step * total % len(self.windows) + first
        rows = self.windows[row : row + size].long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def loss(self, model, tokens, targets):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = model(tokens)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
