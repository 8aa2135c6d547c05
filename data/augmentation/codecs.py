"""Codecs: utterances as they sound when they were sent or stored at a low rate.

Each takes a waveform and gives one of the same length, rate and timing: the delay of an encoder is taken back. G.722
needs the package G722, an extra of Chorus; MP3 and Opus are those of libsndfile, in memory.
"""

import importlib.util
import io
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
from pydantic import BaseModel, Field

from data.augmentation.convolution import Waveform
from data.augmentation.ranges import Range, within
from data.augmentation.resampling import at_rate
from data.augmentation.telephone import TELEPHONE_HZ
from data.containers.g722 import BITS_PER_S as G722_BITS_PER_S
from data.containers.g722 import RATE_HZ as G722_RATE_HZ

CodecKind: TypeAlias = Literal["mu_law", "g722", "mp3", "opus"]

# mu of G.711, in 256 steps.
MU = 255
# Of the two filter banks together, measured: encoded and decoded signals correlate best at this shift.
G722_DELAY_SAMPLES = 22
# LAME's 576 and the decoder's 529 samples, where the first frame has no room for the header that would say so.
MP3_DELAY_SAMPLES = 576 + 529
OPUS_RATES_HZ = (8000, 12_000, 16_000, 24_000, 48_000)
MP3_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
# kbit/s of MPEG-2.5, MPEG-2 and MPEG-1, by their highest sample rate.
MP3_KBPS = {12_000: (8.0, 64.0), 24_000: (8.0, 160.0), 48_000: (32.0, 320.0)}
OPUS_KBPS = (6.0, 256.0)
# Silence behind an utterance, so that encoders give its last frame, and that decoders find enough frames.
PADDING_S = 0.25


class CodecConfig(BaseModel, frozen=True, extra="forbid"):
    """Codecs that utterances are sent through, one for each of them."""

    probability: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of the utterances that go through a codec",
    )
    kinds: tuple[CodecKind, ...] = Field(
        default=("mu_law", "mp3", "opus"),
        min_length=1,
        description="codecs that one is drawn from: mu_law (8 kHz), g722 (16 kHz, extra g722), mp3, opus",
    )
    mp3_kbps: Annotated[Range, within(8.0, 320.0)] = Field(
        default=(16.0, 64.0),
        description="range of the bitrate of MP3, in kbit/s",
    )
    opus_kbps: Annotated[Range, within(*OPUS_KBPS)] = Field(
        default=(8.0, 32.0),
        description="range of the bitrate of Opus, in kbit/s",
    )


def missing_codec(kind: CodecKind) -> str:
    """Why a codec is not there on this machine, with a remedy; empty when it is."""
    if kind == "g722" and importlib.util.find_spec("G722") is None:
        return "the package G722 is not installed; run pip install 'chorus-asr[g722]'"
    formats = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}
    if kind in formats:
        container, subtype = formats[kind]
        if subtype not in soundfile.available_subtypes(container):
            return f"this machine's libsndfile {soundfile.__libsndfile_version__} has none; install the soundfile wheel"
    return ""


def mp3_bitrates(sample_rate_hz: int) -> tuple[float, float]:
    """The lowest and the highest bitrate of MP3 at a sample rate, in kbit/s."""
    encoder_hz = _encoder_rate(sample_rate_hz, MP3_RATES_HZ)
    for highest_hz, bitrates in MP3_KBPS.items():
        if encoder_hz <= highest_hz:
            return bitrates
    raise AssertionError(f"MP3 has no rate of {encoder_hz} Hz")


def through_mu_law(waveform: Waveform, sample_rate_hz: int) -> Waveform:
    """The waveform [S] after mu-law at 8 kHz, as in G.711."""

    def transcode(narrow: Waveform) -> Waveform:
        codes = encode_mu_law(narrow)
        return decode_mu_law(codes)

    return _at_full_scale(waveform, sample_rate_hz, TELEPHONE_HZ, transcode)


def encode_mu_law(waveform: Waveform) -> npt.NDArray[np.int64]:
    """Samples in [-1, 1] as codes from 0 to 255."""
    # In float32 throughout, as torchaudio has it.
    compressed = np.sign(waveform) * np.log1p(MU * np.abs(waveform)) / np.log1p(np.float32(MU))
    # Half a step more, and cut off: the nearest code.
    codes = (compressed + 1) / 2 * MU + 0.5
    return codes.astype(np.int64)


def decode_mu_law(codes: npt.NDArray[np.int64]) -> Waveform:
    """The samples of codes from 0 to 255: float32."""
    mu = np.float32(MU)
    compressed = 2 * codes.astype(np.float32) / mu - 1
    magnitudes = np.expm1(np.abs(compressed) * np.log1p(mu))
    expanded = np.sign(compressed) * magnitudes / mu
    return expanded.astype(np.float32, copy=False)


def through_g722(waveform: Waveform, sample_rate_hz: int) -> Waveform:
    """The waveform [S] after G.722 at 64 kbit/s and 16 kHz. ImportError without the package G722."""
    # Imported here, as it is an extra that few need.
    from G722 import G722

    def transcode(wide: Waveform) -> Waveform:
        # Two samples make a byte.
        padding = G722_DELAY_SAMPLES + len(wide) % 2
        padded = np.pad(wide, (0, padding))
        samples = np.rint(padded * 32_767).astype(np.int16)
        # One each: both keep the state of their filters.
        encoder = G722(G722_RATE_HZ, G722_BITS_PER_S)
        decoder = G722(G722_RATE_HZ, G722_BITS_PER_S)
        encoded = encoder.encode(samples)
        decoded = np.asarray(decoder.decode(encoded))
        return decoded[G722_DELAY_SAMPLES:].astype(np.float32) / np.float32(32_767)

    return _at_full_scale(waveform, sample_rate_hz, G722_RATE_HZ, transcode)


def through_mp3(waveform: Waveform, sample_rate_hz: int, kbps: float) -> Waveform:
    """The waveform [S] after MP3 of a constant bitrate, the nearest that there is to `kbps`."""
    encoder_hz = _encoder_rate(sample_rate_hz, MP3_RATES_HZ)
    lowest, highest = mp3_bitrates(sample_rate_hz)
    # libsndfile 1.2 takes a bitrate as a share of the range, and refuses the very end of it.
    level = min((highest - kbps) / (highest - lowest), 0.999)

    def transcode(samples: Waveform) -> Waveform:
        padded = _with_silence(samples, encoder_hz)
        file = io.BytesIO()
        soundfile.write(
            file,
            padded,
            encoder_hz,
            "MPEG_LAYER_III",
            format="MP3",
            compression_level=level,
            bitrate_mode="CONSTANT",
        )
        decoded = _decode(file)
        # Where the file says what its encoder added, the decoder has taken it away.
        if len(decoded) > len(padded):
            decoded = decoded[MP3_DELAY_SAMPLES:]
        return decoded[: len(samples)]

    return _at_full_scale(waveform, sample_rate_hz, encoder_hz, transcode)


def through_opus(waveform: Waveform, sample_rate_hz: int, kbps: float) -> Waveform:
    """The waveform [S] after Opus of about so many kbit/s."""
    encoder_hz = _encoder_rate(sample_rate_hz, OPUS_RATES_HZ)
    lowest, highest = OPUS_KBPS
    level = (highest - kbps) / (highest - lowest)

    def transcode(samples: Waveform) -> Waveform:
        padded = _with_silence(samples, encoder_hz)
        file = io.BytesIO()
        soundfile.write(file, padded, encoder_hz, "OPUS", format="OGG", compression_level=level)
        return _decode(file)[: len(samples)]

    return _at_full_scale(waveform, sample_rate_hz, encoder_hz, transcode)


def _with_silence(samples: Waveform, rate_hz: int) -> Waveform:
    num_padding = round(PADDING_S * rate_hz)
    return np.pad(samples, (0, num_padding))


def _decode(file: io.BytesIO) -> Waveform:
    """The samples of a file that has just been written."""
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return np.asarray(decoded, dtype=np.float32)


def _encoder_rate(sample_rate_hz: int, rates_hz: tuple[int, ...]) -> int:
    """The lowest rate of an encoder that keeps all of a waveform, else its highest."""
    for rate_hz in rates_hz:
        if rate_hz >= sample_rate_hz:
            return rate_hz
    return rates_hz[-1]


def _at_full_scale(
    waveform: Waveform,
    rate_hz: int,
    codec_hz: int,
    transcode: Callable[[Waveform], Waveform],
) -> Waveform:
    """What a codec makes of a waveform at its own rate. One that passes full scale is brought to it, and back."""
    # Encoders would clip it: noise and gain raise peaks, and clipping is an augmentation of its own.
    peak = float(np.abs(waveform).max(initial=0.0))
    scale = np.float32(max(1.0, peak))

    def within_full_scale(samples: Waveform) -> Waveform:
        # Resampling can raise a peak by a little.
        return transcode(np.clip(samples, -1, 1))

    transcoded = at_rate(waveform / scale, rate_hz, codec_hz, within_full_scale)
    return transcoded * scale
