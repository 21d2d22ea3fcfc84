"""Small traces in the manner of the public ones, and where the real ones are."""

import json
from pathlib import Path
from typing import Any

import pytest

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"

# The same three requests (10 s, 20 s and 70.5 s after midnight) in each format.
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 00:00:10.0000000,100,7
2023-11-16 00:00:20.0000000,200,8
2023-11-16 00:01:10.5000000,300,9
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:10+00:00,100,7
2024-05-10 02:00:20.000000+02:00,200,8
2024-05-10 00:01:10.500000+00:00,300,9
"""
AZURE_2025 = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 00:00:10.0,1,100,7
2024-10-15 00:00:20.0,0,200,8
2024-10-15 00:01:10.5,2,300,9
"""
BURSTGPT = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
10.0,a,1,ChatGPT,100,7,107,Conversation log
20.0,b,1,ChatGPT,200,8,208,API log
70.5,c,1,GPT-4,300,9,309,Conversation log
"""
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n10,100,7\n20,200,8\n70.5,300,9\n"
VIDUR_LENGTHS = "num_prefill_tokens,num_decode_tokens,pd_ratio\n100,7,1\n200,8,1\n300,9,1\n"
SPLITWISE = """request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,10,1,100,7
1,2,0,20,1,200,8
2,2,0,70.5,1,300,9
"""
OWN = "arrival_s,input_tokens,output_tokens\n10,100,7\n20,200,8\n70.5,300,9\n"
LENGTHS = "input_tokens,output_tokens\n100,7\n200,8\n300,9\n"


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


MOONCAKE = rows(
    timestamp=[10_000, 20_000, 70_500],
    input_length=[100, 200, 300],
    output_length=[7, 8, 9],
    hash_ids=[[1], [2], [1]],
)
BAILIAN = rows(
    chat_id=[1, 2, 3],
    parent_chat_id=[-1, -1, 1],
    timestamp=[10, 20, 70.5],
    input_length=[100, 200, 300],
    output_length=[7, 8, 9],
    type=["text"] * 3,
    turn=[1, 1, 2],
    hash_ids=[[1, 2], [3], [1, 2, 4]],
)
BENCH = {
    "duration": 71.0,
    "completed": 3,
    "failed": 0,
    "request_throughput": 0.04,
    "input_lens": [100, 200, 300],
    "output_lens": [7, 8, 9],
    "start_times": [110.0, 120.0, 170.5],
    "errors": ["", "", ""],
}
CONVERSATION = {
    "id": "x",
    "conversations": [
        {"from": "human", "value": "a" * 40},
        {"from": "gpt", "value": "b" * 10},
        {"from": "human", "value": "c" * 20},
        {"from": "gpt", "value": "d" * 9},
    ],
}


def json_lines(values: list[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def real(name: str) -> Path:
    """A trace of ../shared, where that is there."""
    path = REAL / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"shared/data/traces/{name}.csv is not there")
    return path
