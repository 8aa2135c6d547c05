"""The policy: which augmentations an utterance gets, and in which order.

What an utterance gets follows from (seed, step, key) alone: not from the process or the thread that reads it, nor from
what was read before. A recording that is needed and cannot be read makes its utterance one that cannot be read: it is
quarantined and counted, with the reason.
"""

import numpy as np

from data.augmentation.codecs import CodecConfig, through_g722, through_mp3, through_mu_law, through_opus
from data.augmentation.config import AugmentConfig
from data.augmentation.convolution import Waveform
from data.augmentation.draws import Draws
from data.augmentation.loudness import change_volume, clip_peaks
from data.augmentation.noise import BabbleConfig, NoiseConfig, add_noise, mix_voices
from data.augmentation.recordings import RecordingSet, open_recordings
from data.augmentation.reverberation import ReverberationConfig, direct_sound, reverberate
from data.augmentation.rooms import draw_room, simulate_response
from data.augmentation.telephone import limit_band
from data.errors import DataError
from data.remote.settings import StorageConfig
from data.seeds import derive_seed
from data.shards.reader import UtteranceError

# Of a recorded impulse response: longer ones are of no room, or are recordings of something else.
MAX_RESPONSE_S = 10.0


class WaveformAugmentation:
    """Augments the utterances of a split, at its sample rate; safe to use from several threads.

    `utterances` are those of the split itself, which babble comes from unless the recipe names recordings;
    recordings are read as `storage` says. DataError when a set of them is not there or does not fit.
    """

    def __init__(
        self,
        config: AugmentConfig,
        sample_rate_hz: int,
        seed: int,
        utterances: RecordingSet,
        storage: StorageConfig | None = None,
    ):
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self.seed = seed
        self._kinds = config.waveform_kinds()
        self._sets: dict[str, RecordingSet] = {"babble": utterances}
        for key, path in config.recordings().items():
            kind = key.removesuffix(".recordings")
            self._sets[kind] = open_recordings(path, sample_rate_hz, storage)
        # By the number of the room; filled as rooms are drawn.
        self._responses: dict[int, Waveform] = {}

    def apply(
        self,
        waveform: Waveform,
        step: int,
        key: str,
    ) -> Waveform:
        """The waveform of an utterance, float32 [S], as it is heard at a step: as long, and at the same times.

        UtteranceError when a recording for it cannot be read.
        """
        draws = Draws(self.seed, step, key)
        # There is nothing to be heard in it, and nothing to divide by.
        if not waveform.any():
            return waveform
        for kind in self._kinds:
            if not draws.happens(kind, self.config.probability_of(kind)):
                continue
            try:
                waveform = self._apply_kind(kind, waveform, draws)
            except DataError as error:
                reason = f"a recording for its {kind} (augment.{kind}) cannot be read: {error}"
                raise UtteranceError(key, f"Utterance {key} cannot be used: {reason}", reason=reason) from error
        return waveform.astype(np.float32, copy=False)

    def _apply_kind(
        self,
        kind: str,
        waveform: Waveform,
        draws: Draws,
    ) -> Waveform:
        config = getattr(self.config, kind)
        match kind:
            case "reverberation":
                return self._reverberate(waveform, config, draws)
            case "babble":
                return self._add_babble(waveform, config, draws)
            case "noise":
                return self._add_noise(waveform, config, draws)
            case "volume":
                gain_db = draws.between("gain", config.gain_db)
                return change_volume(waveform, gain_db)
            case "clipping":
                level = draws.between("level", config.level)
                return clip_peaks(waveform, level)
            case "telephone":
                return limit_band(waveform, self.sample_rate_hz, config.low_hz, config.high_hz)
            case "codec":
                return self._transcode(waveform, config, draws)
        raise AssertionError(f"{kind} is no kind of augmentation")

    def _reverberate(
        self,
        waveform: Waveform,
        config: ReverberationConfig,
        draws: Draws,
    ) -> Waveform:
        if config.recordings is None:
            room = draws.below("room", config.rooms)
            return reverberate(waveform, self._simulated_response(room, config), delay=0)
        responses = self._sets["reverberation"]
        number = draws.below("response", len(responses))
        max_samples = round(MAX_RESPONSE_S * self.sample_rate_hz)
        response = responses.read_beginning(number, max_samples)
        return reverberate(waveform, response, direct_sound(response))

    def _simulated_response(self, number: int, config: ReverberationConfig) -> Waveform:
        """The response of a room of this run. Two threads may make the same one at once, and get the same."""
        if number not in self._responses:
            draws = Draws(self.seed, "rooms", number)
            room = draw_room(draws, config.rt60_s, config.side_m, config.height_m, config.distance_m)
            tail_seed = derive_seed(self.seed, "reverberant tail", number)
            self._responses[number] = simulate_response(room, self.sample_rate_hz, tail_seed)
        return self._responses[number]

    def _add_babble(
        self,
        waveform: Waveform,
        config: BabbleConfig,
        draws: Draws,
    ) -> Waveform:
        recordings = self._sets["babble"]
        fewest, most = config.voices
        num_voices = fewest + draws.below("number of voices", most - fewest + 1)
        voices: list[Waveform] = []
        for voice in range(num_voices):
            number = draws.below(f"voice {voice}", len(recordings))
            samples = recordings.read(number, draws, f"place of voice {voice}", len(waveform))
            voices.append(samples)
        babble = mix_voices(voices)
        snr_db = draws.between("snr of babble", config.snr_db)
        return add_noise(waveform, babble, snr_db)

    def _add_noise(
        self,
        waveform: Waveform,
        config: NoiseConfig,
        draws: Draws,
    ) -> Waveform:
        recordings = self._sets["noise"]
        number = draws.below("recording of noise", len(recordings))
        noise = recordings.read(number, draws, "place of noise", len(waveform))
        snr_db = draws.between("snr of noise", config.snr_db)
        return add_noise(waveform, noise, snr_db)

    def _transcode(
        self,
        waveform: Waveform,
        config: CodecConfig,
        draws: Draws,
    ) -> Waveform:
        rate_hz = self.sample_rate_hz
        match draws.choose("kind of codec", config.kinds):
            case "mu_law":
                return through_mu_law(waveform, rate_hz)
            case "g722":
                return through_g722(waveform, rate_hz)
            case "mp3":
                kbps = draws.between("bitrate of mp3", config.mp3_kbps)
                return through_mp3(waveform, rate_hz, kbps)
            case "opus":
                kbps = draws.between("bitrate of opus", config.opus_kbps)
                return through_opus(waveform, rate_hz, kbps)
