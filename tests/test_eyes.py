"Eyes for a language model that stays as it is"
import json
import re
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig,
    LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
)

from headpursuit import HeadModel, generate
from headpursuit import fetch
from headpursuit.eyes import EYES, join_eyes, load_eyes, save_eyes, with_eyes
from headpursuit.fetch import SMOLLM2, cache_folder, small_path
from headpursuit.material import captioning, image_classification
from headpursuit.pocket.seeing import SETS, judge_captions

WORDS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<empty_output>', 'What', 'is', 'there',
         '?', 'Answer', ':', 'red', 'a', 'star', '.']
PROMPT = '<image> What is there? Answer:'


@pytest.fixture(scope='module')
def language(tmp_path_factory):
    "A language model of SmolLM2's width and kind, with two layers and fourteen words"
    folder = tmp_path_factory.mktemp('language') / 'model'
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=576, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=2)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(WORDS[:4])
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token='<|im_start|>', eos_token='<|im_end|>',
        pad_token='<|im_end|>').save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def joined(language, tmp_path_factory):
    folder = tmp_path_factory.mktemp('joined')
    join_eyes(language, folder)
    return folder


def test_the_joined_folder_is_an_ordinary_one(joined):
    vlm = AutoModelForImageTextToText.from_pretrained(joined)
    processor = AutoProcessor.from_pretrained(joined)
    batch = processor(text=PROMPT, images=Image.new('RGB', (64, 64)), return_tensors='pt')
    assert (batch['input_ids'] == vlm.config.image_token_id).sum() == 16
    model = HeadModel.from_pretrained(joined)
    assert all('vision' not in name for name in model.projection_names)
    prompts = [dict(text=PROMPT, image=Image.new('RGB', (64, 64), c)) for c in ('red', 'blue')]
    assert len(generate(model, prompts, max_new_tokens=2)) == 2


def assert_same_language_model(language, joined):
    "Every weight, and what comes out of them for text, is that of the model without eyes"
    alone = AutoModelForCausalLM.from_pretrained(language)
    seeing = AutoModelForImageTextToText.from_pretrained(joined)
    theirs = seeing.model.language_model.state_dict()
    own = alone.model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert torch.equal(seeing.lm_head.weight, alone.lm_head.weight)
    assert seeing.lm_head.weight is seeing.get_input_embeddings().weight  # tied, as before
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    with torch.no_grad(): assert torch.equal(alone(ids).logits, seeing(ids).logits)


def test_the_language_model_is_bit_for_bit_the_same(language, joined):
    assert_same_language_model(language, joined)


def test_text_is_read_as_before(language, joined):
    before = HeadModel.from_pretrained(language).tokenizer
    after = HeadModel.from_pretrained(joined).tokenizer
    text = 'What is there? Answer: a red star.'
    assert before(text).input_ids == after(text).input_ids
    assert after(PROMPT).input_ids[0] == before('<empty_output>').input_ids[0]
    assert len(before) == len(after)


def test_eyes_are_kept_whole(language, tmp_path):
    model = with_eyes(language, CLIPVisionConfig.from_pretrained(EYES))
    save_eyes(model, tmp_path)
    again = load_eyes(language, tmp_path)
    for part in ('vision_tower', 'multi_modal_projector'):
        own, loaded = (getattr(m.model.model, part).state_dict() for m in (model, again))
        assert own.keys() == loaded.keys()
        assert all(torch.equal(own[name], loaded[name]) for name in own)


def test_a_language_model_without_a_place_for_pictures_is_refused(language, tmp_path):
    for file in language.iterdir():
        text = file.suffix == '.json'
        data = file.read_bytes()
        if text: data = data.replace(b'<empty_output>', b'<other_output>')
        (tmp_path / file.name).write_bytes(data)
    with pytest.raises(ValueError, match='use SmolLM2'):
        with_eyes(tmp_path, CLIPVisionConfig.from_pretrained(EYES))


@pytest.fixture
def cache(language, tmp_path, monkeypatch):
    "A cache that holds the language model where SmolLM2 should be"
    monkeypatch.setenv('HEADPURSUIT_CACHE', str(tmp_path))
    shutil.copytree(language, tmp_path / SMOLLM2.name)
    return tmp_path


def test_put_together_once(cache, capsys):
    folder = small_path('vision')
    assert folder.parent == cache and (folder / 'config.json').exists()
    assert 'joining' in capsys.readouterr().out
    assert small_path('vision') == folder and 'joining' not in capsys.readouterr().out
    assert small_path() == cache / SMOLLM2.name


def test_a_kill_in_between_leaves_no_model(cache, monkeypatch):
    def killed(language, folder):
        (folder / 'config.json').write_text('{}')
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(fetch, 'join_eyes', killed)
        with pytest.raises(KeyboardInterrupt): small_path('vision')
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [SMOLLM2.name]
    assert (small_path('vision') / 'model.safetensors').exists()


def test_what_is_shipped_is_small_and_has_a_card():
    assert sum(p.stat().st_size for p in EYES.iterdir()) < 8e6
    assert not [p for p in EYES.iterdir() if p.suffix not in ('.json', '.safetensors', '.md')]
    card = (EYES / 'README.md').read_text(encoding='utf-8')
    for word in ('Data', 'seed', 'SmolLM2', 'license: '): assert word in card
    for measured in (*SETS, 'easy-VQA colour', 'sentiments'):
        assert re.search(rf'{measured}\s+[01]\.\d{{3}}', card), measured
    assert json.loads((EYES / 'config.json').read_text())['model_type'] == 'clip_vision_model'


def test_material_of_the_small_model():
    sets = image_classification('small', [*SETS], n_train=2, n_test=20)
    for name, m in sets.items():
        assert 'Answer EXACTLY' not in m.test.prompt[0]['text']
        assert set(m.test.answer) <= set(m.words[name])
    assert 'seven' in sets['digits'].words['digits']
    scenes = captioning('small', n_train=2, n_test=40)
    starts = [c.split()[0] for captions in scenes.test.captions for c in captions]
    assert {'there', 'I', 'a'} <= set(starts)


@pytest.fixture(scope='module')
def real():
    "SmolLM2 with eyes, where it is"
    if not (cache_folder() / SMOLLM2.name / 'config.json').exists():
        pytest.skip('SmolLM2 is not on this machine: headpursuit fetch smollm2')
    return HeadModel.from_pretrained(small_path('vision'))


def test_the_real_language_model_is_bit_for_bit_the_same(real):
    assert_same_language_model(small_path(), small_path('vision'))


@pytest.mark.slow
def test_the_real_one_names_what_it_sees(real):
    sets = image_classification('small', [*SETS], n_train=1, n_test=40, seed=22)
    right = {}
    for name, m in sets.items():
        said = generate(real, m.test.prompt.tolist(), max_new_tokens=5, stop='.\n')
        right[name] = (pd.Series(said).str.strip() == m.test.answer).mean()
    assert min(right.values()) >= .8, right


@pytest.mark.slow
def test_the_real_one_describes_what_it_sees(real):
    scenes = captioning('small', n_train=1, n_test=60, seed=22).test
    said = generate(real, scenes.prompt.tolist(), max_new_tokens=24)
    judged = judge_captions(said, scenes.groups)
    assert (judged['size'] >= 10).all(), judged
    assert (judged['mean'] >= .8).all(), judged
