"""What a student is to learn from its teachers, term by term."""

import gradients
import pupils
import pytest
import torch
from torch.nn import functional

from data.features import FeaturesConfig, LogMel
from launcher.recipe.distillation import SequenceDistillConfig
from launcher.recipe.teachers import hidden_layers
from launcher.training.distillation.cluster_targets import k_means, nearest_units
from launcher.training.distillation.frame_alignment import gather_nearest, interpolate
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.pseudo_labels import make_pseudo_labels
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.feature_batch import CleanInputs
from launcher.training.teachers.chorus import RecognizerTeacher
from launcher.training.teachers.teacher import TeacherOutput
from model import losses
from model.encoder import EncoderConfig
from model.layers.subsampling import valid_mask
from model.recognizer import BLANK, Recognizer
from model.student import AuxiliaryHead, Student

DISTANCES = ("distill/hidden", "distill/ctc", "distill/decoder")


def test_a_student_equal_to_its_teacher_is_at_no_distance():
    teacher = pupils.recognizer()
    twin = pupils.student()
    twin.load_state_dict(teacher.state_dict())
    terms = pupils.terms(pupils.single_teacher_loss(teacher, hidden={"cosine": 1.0}), twin.train())
    for name in DISTANCES:
        assert terms[name].item() == pytest.approx(0.0, abs=1e-5), name
    assert terms["distill/cosine"].item() > 0  # -log sigmoid(1) is its floor


def test_learning_from_the_teacher_alone_brings_the_student_nearer():
    stage_loss = pupils.single_teacher_loss(pupils.recognizer(), hidden={"cosine": 1.0})
    pupil = pupils.student().train()
    optimizer = torch.optim.Adam(pupil.parameters(), lr=3e-3)
    first = last = {}
    for step in range(40):
        terms = pupils.terms(stage_loss, pupil, lane=2)
        distances = {name: part for name, part in terms.items() if name.startswith("distill/")}
        first = first or {name: part.item() for name, part in distances.items()}
        optimizer.zero_grad()
        torch.stack(list(distances.values())).sum().backward()
        optimizer.step()
        last = {name: part.item() for name, part in distances.items()}
        assert step == 0 or all(torch.isfinite(torch.tensor(list(last.values()))))
    for name in DISTANCES:
        assert last[name] < 0.5 * first[name], name


def test_the_teacher_is_left_alone_and_stops_when_the_recipe_says():
    teacher = pupils.recognizer()
    stage_loss = pupils.single_teacher_loss(teacher, until=0.7)
    pupil = pupils.student().train()
    early, late = (pupils.terms(stage_loss, pupil, progress=progress) for progress in (0.69, 0.71))
    assert "distill/hidden" in early
    assert not any(name.startswith("distill/") for name in late)
    torch.stack(list(early.values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_each_term_follows_its_own_schedule():
    teacher, pupil = pupils.recognizer(), pupils.student().train()
    schedules = {"hidden": {"schedule": {"warmup": 0.4}}, "ctc": {"schedule": {"until": 0.5, "decay": 0.5}}}
    stage_loss = pupils.single_teacher_loss(teacher, **schedules)
    always = pupils.terms(pupils.single_teacher_loss(teacher), pupil)
    for progress, hidden, ctc in ((0.0, None, 1.0), (0.1, 0.25, 0.8), (0.4, 1.0, 0.2), (0.6, 1.0, None)):
        terms = pupils.terms(stage_loss, pupil, progress=progress)
        for name, factor in (("distill/hidden", hidden), ("distill/ctc", ctc), ("distill/decoder", 1.0)):
            assert (name in terms) == (factor is not None)
            if factor is not None:
                torch.testing.assert_close(terms[name], factor * always[name])


def test_validation_measures_recognition_alone():
    stage_loss = pupils.single_teacher_loss(pupils.recognizer())
    assert set(pupils.terms(stage_loss, pupils.student().eval())) == {"loss/ctc", "loss/attention"}


def test_an_empty_lane_adds_nothing_to_any_term():
    teacher, helper = pupils.recognizer(), AuxiliaryHead(3, 4)
    of = pupils.stage(sequence={"weight": 1.0}, units={"weight": 1.0})
    taught = pupils.teacher_terms(of, of.named_teachers[0], teacher, units_head="units", units_layer=3)
    taught.centroids_CD = torch.randn(4, 16)
    terms = pupils.terms(
        pupils.stage_loss(of, [taught], {"units": helper}), pupils.student(1, {"units": helper}).train(), 3
    )
    assert {"distill/sequence", "distill/units"} < set(terms)
    assert all(part.item() == 0.0 for part in terms.values())


def test_hidden_states_are_compared_where_groups_end():
    def compared(**encoder) -> tuple[int, ...]:
        model = pupils.DENSE.model_copy(update={"encoder": EncoderConfig(**encoder)})
        return hidden_layers(pupils.stage().model_copy(update={"model": model}))

    assert compared(layers=12, groups=2) == (5, 11)
    assert compared(layers=4, groups=2, sharing="cyclic") == (2, 3)
    assert compared(layers=6, groups=2, private_head=1, private_tail=1) == (0, 2, 4, 5)


# --- the teacher's texts ----------------------------------------------------------------------------


def test_the_teachers_texts_cost_what_transcripts_would():
    """sequence(texts) == the recognition objective with these as transcripts, over the counts of the real ones."""
    teacher, pupil = pupils.recognizer(), pupils.student().train()
    stage_loss = pupils.single_teacher_loss(teacher, sequence={"weight": 2.0})
    batch, totals = gradients.micro_batch(0), gradients.totals()
    output = teacher(batch.features_BTF, batch.lengths_B)
    texts = make_pseudo_labels(
        output.ctc_BSV, output.encoder.lengths_B, output.encoder.lengths_B, SequenceDistillConfig()
    )
    assert texts.row_N.tolist() == [0, 1]
    mine = pupil(batch.features_BTF, batch.lengths_B, texts.tokens_NU, texts.token_lengths_N)
    lengths_B, config = mine.encoder.lengths_B, gradients.OBJECTIVE
    tokens = (texts.tokens_NU, texts.token_lengths_N)
    ctc = losses.ctc_sum(mine.ctc_BSV, lengths_B, *tokens) / totals.tokens
    attention = losses.attention_sum(mine.decoder_BUV, *tokens, lengths_B > 0, config.label_smoothing)
    expected = config.ctc_weight * ctc + (1 - config.ctc_weight) * attention / (totals.tokens + totals.utterances)
    part = pupils.terms(stage_loss, pupil)["distill/sequence"]
    torch.testing.assert_close(part, 2.0 * expected)
    assert "distill/sequence" not in pupils.terms(pupils.single_teacher_loss(teacher), pupil)


def logits_of(path: list[int], vocabulary: int = 6, sure: float = 8.0) -> torch.Tensor:
    return sure * functional.one_hot(torch.tensor(path), vocabulary).float()


def test_texts_of_an_utterance_share_one_weight_by_their_probability_and_the_temperature():
    generator = torch.Generator().manual_seed(0)
    logits_BSV, lengths_B = torch.randn(3, 9, 6, generator=generator), torch.tensor([9, 6, 8])
    weights = {}
    for temperature in (1.0, 4.0):
        config = SequenceDistillConfig(search="prefix_beam", texts=3, beam=6, temperature=temperature)
        texts = make_pseudo_labels(logits_BSV, lengths_B, lengths_B, config)
        sums_B = torch.zeros(3).index_add(0, texts.row_N, texts.weight_N)
        torch.testing.assert_close(sums_B, torch.ones(3))
        weights[temperature] = texts.weight_N[texts.row_N == 0]
    assert len(weights[1.0]) == 3
    assert weights[1.0].diff().max() < 0  # best first
    ratio = weights[1.0].log() - weights[1.0].log()[0]
    torch.testing.assert_close((weights[4.0].log() - weights[4.0].log()[0]) * 4, ratio)


def test_empty_texts_and_texts_without_room_are_left_out():
    path = [4, BLANK, 4, 5]
    logits_BSV = torch.stack([logits_of(path), logits_of([BLANK] * 4), logits_of(path)])
    lengths_B = torch.tensor([4, 4, 4])
    texts = make_pseudo_labels(logits_BSV, lengths_B, torch.tensor([4, 4, 3]), SequenceDistillConfig())
    assert texts.row_N.tolist() == [0]
    assert texts.tokens_NU.tolist() == [[4, 4, 5]]
    assert texts.weight_N.tolist() == [1.0]
    nothing = make_pseudo_labels(logits_BSV[1:2], lengths_B[1:2], lengths_B[1:2], SequenceDistillConfig())
    assert nothing.weight_N.tolist() == [0.0]
    assert nothing.token_lengths_N.tolist() == [0]


# --- units ------------------------------------------------------------------------------------------


def clouds(generator: torch.Generator) -> torch.Tensor:
    middles = 10 * torch.eye(5, 8)
    return (middles.repeat_interleave(40, 0) + 0.3 * torch.randn(200, 8, generator=generator))[
        torch.randperm(200, generator=generator)
    ]


def test_k_means_finds_the_clouds_and_the_same_ones_every_time():
    states_ND = clouds(torch.Generator().manual_seed(1))
    centroids_CD = k_means(states_ND, 5, 20, seed=3)
    assert torch.cdist(10 * torch.eye(5, 8), centroids_CD).min(1).values.max() < 0.5
    assert centroids_CD.equal(k_means(states_ND, 5, 20, seed=3))
    units_N = nearest_units(states_ND, centroids_CD)
    assert torch.bincount(units_N).tolist() == [40] * 5
    assert units_N.equal(torch.cdist(states_ND, centroids_CD).argmin(1))


def test_k_means_survives_fewer_different_states_than_clusters():
    centroids_CD = k_means(torch.ones(20, 3), 4, 5, seed=0)
    torch.testing.assert_close(centroids_CD, torch.ones(4, 3))


def learn(stage_loss: DistillationLoss, pupil: Student, name: str, steps: int) -> list[float]:
    """Train the pupil for one part of its loss alone, on one lane; that part at every step."""
    optimizer = torch.optim.Adam(pupil.parameters(), lr=3e-3)
    values = []
    for _ in range(steps):
        part = pupils.terms(stage_loss, pupil, lane=2)[name]
        optimizer.zero_grad()
        part.backward()
        optimizer.step()
        values.append(part.item())
    return values


def units_loss(**units) -> tuple[DistillationLoss, Student, TeacherTerms]:
    of = pupils.stage(units={"weight": 1.0, "count": 6, **units}, hidden={"weight": 0}, ctc={"weight": 0})
    taught = pupils.teacher_terms(
        of, of.named_teachers[0], pupils.recognizer(), units_head="units-teacher", units_layer=2
    )
    taught.centroids_CD = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    auxiliary_heads = {"units-teacher": AuxiliaryHead(3, 6)}
    return pupils.stage_loss(of, [taught], auxiliary_heads), pupils.student(1, auxiliary_heads).train(), taught


def test_a_student_learns_to_tell_its_teachers_units():
    stage_loss, pupil, taught = units_loss()
    values = learn(stage_loss, pupil, "distill/units", steps=40)
    assert values[-1] < 0.5 * values[0]
    batch = gradients.micro_batch(2)
    output = pupil(batch.features_BTF, batch.lengths_B)
    teacher = taught.teacher(batch)
    units_BS = nearest_units(teacher.layers[2], taught.centroids_CD)
    valid_BS = valid_mask(teacher.lengths_B, units_BS.shape[1])
    expected = losses.units_sum(output.auxiliary["units-teacher"], units_BS, valid_BS) / gradients.totals().frames
    torch.testing.assert_close(pupils.terms(stage_loss, pupil, lane=2)["distill/units"], expected)


def test_units_may_count_at_frames_that_time_masks_hide_alone():
    stage_loss, pupil, _ = units_loss(masked_only=True)
    batch, totals = gradients.micro_batch(0), gradients.totals()

    def part(masked_BT: torch.Tensor) -> float:
        batch.source = CleanInputs(batch.features_BTF, masked_BT, torch.zeros(2, 1), torch.zeros(2))
        return stage_loss(pupil, batch, totals, 0.0)[0]["distill/units"].item()

    nowhere = torch.zeros(2, 90, dtype=torch.bool)
    first, rest = nowhere.clone(), nowhere.clone()
    first[:, :40], rest[:, 40:] = True, True
    partly = nowhere.clone()
    partly[:, 4:7] = True  # three of a frame's four
    assert part(nowhere) == part(partly) == 0.0
    assert 0 < part(first) < part(~nowhere)
    assert part(first) + part(rest) == pytest.approx(part(~nowhere), rel=1e-5)
    everywhere, _, _ = units_loss()
    assert pupils.terms(everywhere, pupil)["distill/units"].item() == pytest.approx(part(~nowhere), rel=1e-5)


def test_helpers_whose_term_has_ended_get_a_gradient_of_zero():
    stage_loss, pupil, _ = units_loss(schedule={"until": 0.5})
    terms = pupils.terms(stage_loss, pupil, progress=0.6)
    assert "distill/units" not in terms
    torch.stack(list(terms.values())).sum().backward()
    assert all(not parameter.grad.any() for parameter in pupil.helpers.parameters())
    _, without, _ = units_loss()
    plain = pupils.terms(pupils.single_teacher_loss(pupils.recognizer(), until=0.5), without, progress=0.6)
    torch.testing.assert_close(terms["loss/ctc"], plain["loss/ctc"], rtol=0, atol=0)


# --- several teachers, and teachers of other shapes ---------------------------------------------------


def test_several_teachers_teach_the_weighted_mean_of_what_each_would_alone():
    first, second, pupil = pupils.recognizer(0), pupils.recognizer(7), pupils.student().train()
    teachers = [{"model": "first", "weight": 3.0}, {"model": "second", "weight": 1.0, "terms": ["hidden", "decoder"]}]
    of = pupils.stage(teachers)
    terms = [of.distill.active(), frozenset({"hidden", "decoder"})]
    teachers = [
        pupils.teacher_terms(of, config, teacher, terms=taught)
        for config, teacher, taught in zip(of.named_teachers, (first, second), terms, strict=True)
    ]
    terms = pupils.terms(pupils.stage_loss(of, teachers), pupil)
    alone = [pupils.terms(pupils.single_teacher_loss(teacher), pupil) for teacher in (first, second)]
    for name, one, other in (("hidden", 0.75, 0.25), ("decoder", 0.75, 0.25), ("ctc", 1.0, None)):
        torch.testing.assert_close(terms[f"distill/{name}/first"], one * alone[0][f"distill/{name}"])
        if other is None:
            assert f"distill/{name}/second" not in terms
        else:
            torch.testing.assert_close(terms[f"distill/{name}/second"], other * alone[1][f"distill/{name}"])


def test_a_narrower_and_shallower_student_follows_through_a_projection():
    teacher = pupils.recognizer(0, width=24, layers=6, groups=6)
    of = pupils.stage([{"model": "teacher", "layers": [1, 5]}], hidden={"layers": [1, 3], "projection": True})
    auxiliary_heads = {"hidden-1": AuxiliaryHead(1, 24), "hidden-3": AuxiliaryHead(3, 24)}
    taught = pupils.teacher_terms(of, of.named_teachers[0], teacher, projections={1: "hidden-1", 3: "hidden-3"})
    assert taught.layer_pairs == ((1, 1), (3, 5))
    stage_loss, pupil = pupils.stage_loss(of, [taught], auxiliary_heads), pupils.student(1, auxiliary_heads).train()
    values = learn(stage_loss, pupil, "distill/hidden", steps=60)
    assert values[-1] < 0.5 * values[0]
    assert all(parameter.grad.any() for parameter in pupil.helpers.parameters())


def test_frames_are_interpolated_between_valid_ones_whatever_the_padding():
    """interpolate(t)[s] == t at s * ratio, for states that are linear in time."""
    lengths_B = torch.tensor([7, 4])
    line_BSD = torch.arange(9.0).repeat(2, 1)[..., None]
    line_BSD[1, 4:] = float("nan")  # what is not valid must not be looked at
    for ratio in (0.5, 1.0, 2.0, 1.5):
        found_BR = interpolate(line_BSD, lengths_B, ratio, 8)[..., 0]
        times = torch.arange(8) * ratio
        for row, length in enumerate((7, 4)):
            torch.testing.assert_close(found_BR[row], times.clamp(max=length - 1))
    codes_BS = torch.arange(9).repeat(2, 1)
    assert gather_nearest(codes_BS, lengths_B, 2.0, 5).tolist() == [[0, 2, 4, 6, 6], [0, 2, 3, 3, 3]]
    states_BSD = torch.randn(2, 8, 3)
    assert interpolate(states_BSD, lengths_B, 1.0, 8) is states_BSD


def test_a_student_of_fewer_frames_is_compared_at_its_own_times():
    class Still:
        """A teacher whose frames come twice as often, and say what time it is."""

        frame_s, same_tokens, has_decoder, needs_source = 0.02, False, False, False

        def __call__(self, batch):
            lengths_B = (batch.lengths_B + 1) // 2
            times = torch.arange(int(lengths_B.max()), dtype=torch.float32)
            states = times[None, :, None].expand(len(lengths_B), -1, 16)
            return TeacherOutput({layer: states for layer in range(4)}, lengths_B)

    of = pupils.stage(hidden={"resample": True}, ctc={"weight": 0}, decoder={"weight": 0})
    taught = TeacherTerms("teacher", Still(), 1.0, of.distill.active(), ((3, 3),), ratio=2.0)
    pupil, batch = pupils.student().train(), gradients.micro_batch(2)
    output = pupil(batch.features_BTF, batch.lengths_B)
    lengths_B, state_BSD = output.encoder.lengths_B, output.encoder.layers[3]
    times_BS = (2.0 * torch.arange(state_BSD.shape[1])).repeat(3, 1)
    last_B1 = ((batch.lengths_B + 1) // 2 - 1)[:, None]
    target_BSD = torch.minimum(times_BS, last_B1)[..., None].expand_as(state_BSD)
    valid_BS = valid_mask(lengths_B, state_BSD.shape[1])
    expected = losses.hidden_sum(state_BSD, target_BSD, valid_BS) / gradients.totals().frames
    torch.testing.assert_close(pupils.terms(pupils.stage_loss(of, [taught]), pupil, lane=2)["distill/hidden"], expected)


def test_a_teacher_may_hear_what_masks_hide_or_the_speech_itself():
    """Through a front-end of other bins, from waveforms: the states are those of its own features."""
    batch, bins = gradients.micro_batch(0), 12
    waveforms_BS = torch.randn(2, 16000, generator=torch.Generator().manual_seed(2))
    samples_B = torch.tensor([16000, 9000])
    clean_BTF = batch.features_BTF + 1
    batch.source = CleanInputs(clean_BTF, clean_BTF[..., 0] > 9, waveforms_BS, samples_B)
    teacher = pupils.recognizer()
    assert not RecognizerTeacher(teacher, pupils.FRONT_END).needs_source
    heard = RecognizerTeacher(teacher, pupils.FRONT_END, "clean")(batch)
    expected = teacher(clean_BTF, batch.lengths_B).encoder
    torch.testing.assert_close(heard.layers[3], expected.layers[3])

    front_end = LogMel(FeaturesConfig(mel_bins=bins))
    front_end.set_statistics(torch.full((bins,), -5.0), torch.full((bins,), 2.0))
    other = Recognizer(pupils.DENSE, bins, gradients.VOCABULARY + 3).eval()
    opened = RecognizerTeacher(other, front_end, "waveform", same_tokens=False)
    heard = opened(batch)
    features_BTF, lengths_B = front_end(waveforms_BS, samples_B)
    torch.testing.assert_close(heard.layers[3], other(features_BTF, lengths_B).encoder.layers[3])
    assert heard.lengths_B.tolist() == [25, 14]
    assert heard.ctc_BSV is None
    assert not opened.has_decoder
