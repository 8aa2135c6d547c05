"""The tokenizer of a Chorus recogniser for transformers: SentencePiece, whose first id is the blank of CTC."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

BLANK = 0
# Blank, begin and end are not written.
SILENT = (0, 2, 3)


class ChorusTokenizer(PreTrainedTokenizer):
    """Texts to ids and back. `decode` merges repeated ids, as a path of CTC needs it; not with `group_tokens=False`."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  as transformers declares it
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any):
        self.vocab_file = vocab_file
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.Load(vocab_file)
        names = {"pad_token": 0, "unk_token": 1, "bos_token": 2, "eos_token": 3}
        for name, piece in names.items():
            kwargs[name] = self.processor.id_to_piece(piece)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.processor.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.processor.id_to_piece(piece): piece for piece in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.processor.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.processor.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.processor.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.processor.decode([self.processor.piece_to_id(token) for token in tokens])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        group_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        if isinstance(token_ids, int):
            token_ids = [token_ids]
        if group_tokens:
            token_ids = [token for token, _ in itertools.groupby(token_ids)]
        return self.processor.decode([int(token) for token in token_ids if token not in SILENT])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}tokenizer.model"
        if path.absolute() != Path(self.vocab_file).absolute():
            shutil.copy(self.vocab_file, path)
        return (str(path),)
