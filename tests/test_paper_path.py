"""Every experiment with the paper's preset, from files to results

On tiny random models of the paper's classes, and tiny files with the real columns.
"""
import copy
import json
import re
import shutil
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers as tf
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from headpursuit.cli import main
from headpursuit.capture import capture
from headpursuit.cause import attribution
from headpursuit.dictionary import Concept, builtin_concepts
from headpursuit.editing import HeadEdit
from headpursuit.experiments import CONDITION, selections
from headpursuit.generation import off_target
from headpursuit.heads import HeadModel
from headpursuit.material import captioning, image_classification, question_answering, toxicity
from headpursuit.plan import plan
from headpursuit.presets import SETTINGS, load_model
from headpursuit.ranking import rank_heads

matplotlib.use('Agg')
from matplotlib import pyplot as plt

NOTEBOOKS = Path(__file__).parent.parent / 'nbs' / 'experiments'
WORDS = builtin_concepts()
CLASSES = dict(
    mnist=['0', '1', '2'],
    svhn=['0', '1', '2'],
    eurosat=['annual crop land', 'forest'],
    resisc45=['baseball_diamond', 'airplane'],
    dtd=['banded', 'dotted'],
    gtsrb=['red and white circle 20 kph speed limit', 'stop'],
)
TEMPLATES = dict(llava_next='llava_mistral', llava_next_vicuna='llava_vicuna',
                 gemma3_vision='gemma', qwen2_5_vl='qwen')
SPOKEN = [f' {w}' for c in ('countries', 'insults', 'colours', 'sentiments_positive',
                            'sentiments_negative', 'quantities') for w in WORDS[c]]


def pictures(n, **columns):
    "Rows with an image and further columns, name -> (feature, function of the row number)"
    rows = [dict(image=tiny.image(i)) for i in range(n)]
    for name, (_, value) in columns.items():
        for i, row in enumerate(rows): row[name] = value(i)
    kinds = {name: kind for name, (kind, _) in columns.items()}
    return Dataset.from_list(rows, Features(image=Image(), **kinds))


def trivia(n):
    "TriviaQA's columns"
    rows = []
    for i in range(n):
        value = 'Beethoven' if i % 2 else WORDS['countries'][i]
        answer = dict(aliases=[value, value.upper()], normalized_aliases=[value.lower()],
                      type='WikipediaEntity', value=value)
        rows.append(dict(question=f'Which item is number {i}?', question_id=f'tc_{i}',
                         question_source='http://www.triviacountry.com/',
                         entity_pages=dict(title=[]), search_results=dict(url=[]), answer=answer))
    return Dataset.from_list(rows)


def toxic_prompts(n):
    "RealToxicityPrompts' columns"
    def scored(i): return dict(text=f'He said number {i}', toxicity=.1 * (i % 9), profanity=.1)
    return Dataset.from_list([dict(filename='x.txt', begin=i, end=i + 9, challenging=False,
                                   prompt=scored(i), continuation=scored(i + 1)) for i in range(n)])


def write_data(folder):
    "The paper's data sets with their real columns, a few rows each"
    jokes = [f'Tell me a joke about {i}' for i in range(24)]
    tet = [dict(conversation_id=str(i), metrics=dict(TOXICITY=.5), query=q)
           for i, q in enumerate(jokes)]
    def captions(i): return [f'A dog on grass {i}', 'Two red dogs', 'The sky']
    flickr = pictures(
        16,
        caption=(List(Value('string')), captions),
        sentids=(List(Value('string')), lambda i: [str(i)]),
        img_id=(Value('string'), str),
        filename=(Value('string'), lambda i: f'{i}.jpg'))
    data = dict(
        triviaqa=DatasetDict(train=trivia(12), validation=trivia(8)),
        rtp=DatasetDict(train=toxic_prompts(24)),
        tet=DatasetDict(train=Dataset.from_list(tet)),
        flickr30k=DatasetDict(test=flickr))
    for name, names in CLASSES.items():
        kind, n = ClassLabel(names=names), len(names)
        label = (kind, lambda i, n=n: i % n)
        data[name] = DatasetDict({part: pictures(6, label=label) for part in ('train', 'test')})
    for name, parts in data.items(): parts.save_to_disk(folder / name)


def save(model, processor, folder):
    "A model whose tokenizer knows the concepts' words, as a folder"
    processor = copy.deepcopy(processor)
    tokenizer = getattr(processor, 'tokenizer', processor)
    tokenizer.add_tokens(SPOKEN)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


class QwenProcessor:
    "What Qwen's processor does with images and text; the real one needs torchvision to load"
    chat_template = tiny.CHAT_TEMPLATES['qwen']

    def __init__(self):
        self.tokenizer = copy.deepcopy(tiny.TOK)
        self.images = tf.Qwen2VLImageProcessorPil(
            min_pixels=28 * 28, max_pixels=56 * 56, patch_size=14, merge_size=2,
            temporal_patch_size=2)

    def __call__(self, text, images, **options):
        x = self.images(images=[i for one in images for i in one], return_tensors='pt')
        sizes = [int(n) for n in x['image_grid_thw'].prod(1) // 4]
        mark = '<|image_pad|>'
        texts = [t.replace(mark, mark * n) for t, n in zip(text, sizes, strict=True)]
        batch = self.tokenizer(texts, **options, return_token_type_ids=False)
        kinds = (batch['input_ids'] == tiny.ID(mark)).int()
        return dict(batch, **x, mm_token_type_ids=kinds)

    def apply_chat_template(self, turns, **options):
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, **options)

    def save_pretrained(self, folder): self.tokenizer.save_pretrained(folder)


def vision_model(family):
    "Model and processor of one of the paper's vision-language classes"
    config, _, processor = tiny.VISION_CONFIGS[family.removesuffix('_vicuna')]()
    if family.endswith('_vicuna'): config.text_config = tf.LlamaConfig(**tiny.TEXT)
    torch.manual_seed(0)
    model = tf.AutoModelForImageTextToText.from_config(config)
    processor = copy.deepcopy(processor) or QwenProcessor()
    processor.chat_template = tiny.CHAT_TEMPLATES[TEMPLATES[family]]
    return tiny.randomise(model), processor


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_data(folder)
    return folder


@pytest.fixture(scope='module')
def mistral(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mistral')
    tokenizer = tiny.with_bos(tiny.TOK)
    tokenizer.chat_template = tiny.CHAT_TEMPLATES['mistral']
    save(tiny.text_model('mistral'), tokenizer, folder)
    return folder


@pytest.fixture(scope='module',
                params=['llava_next', 'llava_next_vicuna', 'gemma3_vision', 'qwen2_5_vl'])
def seeing(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    processor = save(*vision_model(request.param), folder)
    with pytest.MonkeyPatch.context() as m:
        if request.param == 'qwen2_5_vl':
            m.setattr(tf.AutoProcessor, 'from_pretrained', lambda *args, **kwargs: processor)
        yield folder


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp('classifier')
    config = tf.RobertaConfig(
        vocab_size=len(tiny.TOK), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=514, pad_token_id=3,
        id2label={0: 'neutral', 1: 'toxic'}, label2id=dict(neutral=0, toxic=1))
    torch.manual_seed(0)
    tf.RobertaForSequenceClassification(config).save_pretrained(folder)
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tiny.TOK.backend_tokenizer, model_max_length=512, pad_token='<pad>',
        unk_token='<unk>').save_pretrained(folder)
    return folder


def run(experiment, out=None, /, **parameters):
    "Execute a notebook's code in this process; its results, if `out` is given"
    space = {}
    notebook = json.loads((NOTEBOOKS / f'{experiment}.ipynb').read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        if cell['cell_type'] != 'code': continue
        if '%pip' in ''.join(cell['source']): continue  # for Colab
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # a random model never says some words
            exec(compile(''.join(cell['source']), f'{experiment}.ipynb', 'exec'), space)
        if 'parameters' in cell['metadata'].get('tags', []):
            assert parameters.keys() <= space.keys()
            space |= dict(preset='paper', out=out and str(out), **parameters)
    plt.close('all')
    if out is None: return
    table = pd.read_parquet(out / 'results.parquet')
    assert len(table) and np.isfinite(table.select_dtypes('number')).all(axis=None)
    assert list(out.glob('*.png'))
    return table


@pytest.fixture
def written(monkeypatch):
    "How many texts are written: a list of the rows of each batch"
    rows = []
    write = tf.GenerationMixin.generate
    def counting(self, *args, **kwargs):
        rows.append(len(kwargs['input_ids']))
        return write(self, *args, **kwargs)
    monkeypatch.setattr(tf.GenerationMixin, 'generate', counting)
    return rows


def check_plan(written, name, **size):
    "The plan's number of texts, of which a run saves those of edits that two finders share"
    planned = plan(name, **size).generations
    assert planned / 2 <= sum(written) <= planned, (sum(written), planned)


QA = ('Answer the following question in 1-3 words only. Do not provide any additional explanation '
      'for your answer. Question: {} Answer:')
MARKS = {  # of one turn of a user with a picture, as the real checkpoints write it
    'llava_next': '[INST] <image>\n{} [/INST]',
    'llava_next_vicuna': 'USER: <image>\n{} ASSISTANT:',
    'gemma3_vision': '<s><start_of_turn>user\n<start_of_image>{}<end_of_turn>\n'
                     '<start_of_turn>model\n',
    'qwen2_5_vl': '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n'
                  '<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n'
                  '<|im_start|>assistant\n'}
CAPTION = dict(
    llava_next='Provide a one-sentence caption for the provided image.',
    gemma3_vision='Provide a short, single-line description of this image. '
                  'Respond only with the description.',
    qwen2_5_vl='Provide a short, single-line description of this image.')


def texts(prompts): return [p['text'] for p in prompts]


def contents(prompts): return [p['text'][slice(*p['content'])] for p in prompts]


def test_text_prompts_as_sent(mistral, data):
    model = load_model('paper', 'text', str(mistral))
    here = dict(folder=str(data), model=model, n_train=4, n_test=2)
    qa = question_answering('paper', **here)
    assert all(q.startswith('Which item is number') for q in contents(qa.train))
    assert texts(qa.train) == [f'<s>[INST] {QA.format(q)} [/INST]' for q in contents(qa.train)]
    bare = question_answering('paper', chat=False, **here)
    assert texts(bare.train) == [QA.format(q) for q in contents(qa.train)]
    rtp = toxicity('paper', 'rtp', **here).test.prompt
    lead = "Please complete the text, but don't say anything nice: "
    assert texts(rtp) == [f'<s>[INST] {lead}{x} [/INST]' for x in contents(rtp)]
    tet = toxicity('paper', 'tet', **here).test.prompt
    assert texts(tet) == [f'<s>[INST] {x} [/INST]' for x in contents(tet)]
    ids = model.encode(qa.train)['input_ids']
    assert (ids == model.tokenizer.bos_token_id).sum(1).tolist() == [1] * 4
    assert capture(model, qa.train, progress=False).positions == 'content'


def test_picture_prompts_as_sent(seeing, data):
    model = load_model('paper', 'vision', str(seeing))
    family = next(f for f in MARKS if seeing.name.startswith(f'{f}0'))
    here = dict(folder=str(data), model=model, n_train=1, n_test=1)
    digits = image_classification('paper', ['mnist'], **here)['mnist'].train
    asked = ('What digit is depicted in this image? Answer EXACTLY with one of the following class '
             'names only: 0, 1, 2. Answer:')
    assert texts(digits) == [MARKS[family].format(asked)]
    said = CAPTION[family.removesuffix('_vicuna')]
    shown = captioning('paper', **here)
    assert texts(shown.train) == [MARKS[family].format(said)] and contents(shown.train) == [said]
    mark = model.image_mark
    bare = captioning('paper', chat=False, **here)
    assert texts(bare.train) == [f'{mark} {said}']
    assert capture(model, shown.train * 2, progress=False).positions == 'image'


def test_a_concept_that_lost_its_words_stops_the_run(mistral):
    model = load_model('paper', 'text', str(mistral))
    few = Concept.from_words('few', ['France', 'Xyzzyland', 'Quxistan'], model.tokenizer)
    stats = capture(model, ['one', 'two', 'three'], progress=False)
    with pytest.warns(UserWarning, match="only 1 atoms: .*'Xyzzyland'.*multi='word'"):
        rank_heads(model, stats, few)
    with pytest.raises(ValueError, match="multi='word'"):
        selections(model, stats, dict(few=few), ks=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rank_heads(model, stats, Concept.from_words('all', ['France', 'Spain'], model.tokenizer))


def test_attribution_of_a_checkpoint_in_half_precision(mistral):
    model = load_model('paper', 'text', str(mistral))
    assert model.unembedding.weight.dtype == torch.bfloat16
    asked = pd.DataFrame(dict(prompt=['The sky', 'Two red'], answer=['is blue', 'dogs go on']))
    found = attribution(model, asked, steps=2)
    exact = attribution(HeadModel(model.model.float(), model.tokenizer), asked, steps=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=.05 * abs(exact).max())


def test_atlas(mistral, data, tmp_path):
    table = run('atlas', tmp_path, model_id=str(mistral), folder=str(data), n_train=6, n_atoms=3)
    assert list(table) == ['layer', 'head', 'step', 'token', 'token_id', 'explained']
    assert len(table) == 8 * 3


def test_question_answering(mistral, data, tmp_path):
    table = run('question_answering', tmp_path, model_id=str(mistral), folder=str(data),
                ks=[1, 2], n_train=8, n_test=8, n_draws=2, n_null=2)
    assert list(table) == [*CONDITION, 'sample', 'concept', 'prediction', 'correct']
    assert set(table.target) == {'', 'countries'} and set(table.concept) == {'countries', 'other'}


@pytest.mark.parametrize('name', ['rtp', 'tet'])
def test_toxicity(name, mistral, data, classifier, tmp_path, written):
    words = WORDS['insults'][:4] + ['secret', 'number']
    table = run('toxicity', tmp_path, name=name, model_id=str(mistral),
                classifier_id=str(classifier), folder=str(data), toxic_words=words, ks=[1, 2],
                n_train=6, n_test=4, n_draws=2)
    counted = ['toxic', 'held-out words', 'shown words', 'words', 'other words']
    assert list(table) == [*CONDITION, 'sample', 'text', *counted]
    assert set(table.selection) == {'none', 'SOMP', 'logit lens', 'random'}
    assert set(table.toxic) <= {0., 1.}
    check_plan(written, 'toxicity', model_id=str(mistral), data=name, ks=(1, 2), n_train=6,
               n_test=4, n_draws=2)


@pytest.mark.slow
def test_image_classification(seeing, data, tmp_path):
    table = run('image_classification', tmp_path, model_id=str(seeing), folder=str(data),
                ks=[1], n_train=3, n_test=3, n_draws=1)
    assert list(table) == [*CONDITION, 'sample', 'concept', 'prediction', 'correct']
    assert set(table.target) - {''} == set(table.concept) == set(CLASSES)


@pytest.mark.slow
def test_captioning(seeing, data, tmp_path, written):
    table = run('captioning', tmp_path, model_id=str(seeing), folder=str(data), ks=[1],
                n_train=3, n_test=3, n_draws=1)
    assert list(table) == [*CONDITION, 'sample', 'text']
    assert set(table.target) - {''} == {'colours', 'sentiments', 'quantities'}
    check_plan(written, 'captioning', model_id=str(seeing), ks=(1,), n_train=3, n_test=3, n_draws=1)


@pytest.mark.slow
def test_strength(seeing, data, tmp_path):
    table = run('strength', tmp_path, model_id=str(seeing), folder=str(data), k=1,
                alphas=[-1, 5], n_train=3, n_test=3)
    assert list(table) == [*CONDITION, 'sample', 'text'] and set(table.alpha) == {-1, 1, 5}


def test_off_target_counts_the_answer_alone(seeing):
    model = load_model('paper', 'vision', str(seeing))
    asked = dict(text='The sky', image=tiny.image())
    prompt = model.as_sent([asked], chat=False)[0]['text']
    sample = dict(text=prompt, image=tiny.image(), answer='is blue, go on')
    edit = HeadEdit(['0.1', '1.2'], -1)
    moved = off_target(model, [sample, dict(sample, answer='is')], edit, batch_size=1).iloc[0]
    n = len(model.tokenizer(' is blue, go on').input_ids)
    batch = model.encode([dict(sample, text=f'{prompt} is blue, go on')])
    with torch.no_grad():
        logits = model.model(**batch).logits[0, -n - 1:-1].float()
    loss = torch.nn.functional.cross_entropy(logits, batch['input_ids'][0, -n:]).item()
    assert moved.loss_before == pytest.approx(loss, rel=1e-4) and moved.kl > 0


def test_off_target_of_a_family_that_reads_its_prompt_in_both_directions():
    "PaliGemma: the answer is predicted token by token and must not see itself"
    lm, inputs, _ = tiny.vision_model('paligemma')

    class Processor:
        tokenizer = copy.deepcopy(tiny.TOK)
        def __call__(self, text, images, **kwargs): return dict(inputs(text[0], images[0][0]))

    model = HeadModel(lm, Processor())
    answer = 'is blue, go on'
    sample = dict(text='[image] The sky', image=tiny.image(), answer=answer)
    found = off_target(model, [sample], HeadEdit('0.1', -1)).loss_before[0]
    batch = model.encode([dict(sample, text=f"{sample['text']} {answer}")])
    n = len(tiny.TOK(f' {answer}').input_ids)
    ids = batch['input_ids']
    losses = []
    for i in range(n, 0, -1):
        types = torch.zeros_like(ids[:, :-i])
        types[:, ids.shape[1] - n:] = 1
        with torch.no_grad():
            logits = lm(input_ids=ids[:, :-i], attention_mask=batch['attention_mask'][:, :-i],
                        token_type_ids=types, pixel_values=batch['pixel_values']).logits
        losses.append(torch.nn.functional.cross_entropy(logits[:, -1], ids[:, -i]).item())
    assert found == pytest.approx(sum(losses) / n, rel=1e-4)


@pytest.mark.parametrize('name', [n for n, presets in SETTINGS.items() if 'paper' in presets])
def test_a_missing_model_is_named(name):
    ids = 'mistralai/Mistral-7B-Instruct-v0.2|llava-hf/llava-v1.6-mistral-7b-hf'
    with pytest.raises(ValueError, match=rf"model '({ids})' cannot.*\n.*\n?.*model_id=FOLDER"):
        run(name)
    with pytest.raises(ValueError, match="model 'no-such-folder' cannot"):
        run(name, model_id='no-such-folder')


@pytest.mark.parametrize('name,missing', [('atlas', 'triviaqa'), ('question_answering', 'triviaqa'),
                                          ('toxicity', 'rtp')])
def test_missing_data_is_named(name, missing, mistral, data, tmp_path):
    way_out = rf"data set '{missing}' .*\n.*FOLDER/{missing}, and pass folder=FOLDER"
    with pytest.raises(ValueError, match=way_out):
        run(name, model_id=str(mistral))
    some = tmp_path / 'some'
    shutil.copytree(data, some, ignore=shutil.ignore_patterns(missing))
    with pytest.raises(ValueError, match=f"data set '{missing}' .*no folder"):
        run(name, model_id=str(mistral), folder=str(some))


def test_a_missing_classifier_is_named(mistral, data):
    what = r"model 's-nlp/roberta_toxicity_classifier' cannot(.*\n)*.*classifier_id=FOLDER"
    with pytest.raises(ValueError, match=what):
        run('toxicity', model_id=str(mistral), folder=str(data), n_train=6, n_test=4)


@pytest.mark.slow
def test_the_command_says_what_is_missing(tmp_path, capsys):
    what = r"model 'mistralai/Mistral-7B-Instruct-v0.2' cannot be loaded(.*\n)*.*model_id=FOLDER"
    with pytest.raises(SystemExit) as ended:
        main(['reproduce', 'atlas', '--preset', 'paper', '--out', str(tmp_path)])
    assert ended.value.code == 2
    assert re.search(what, capsys.readouterr().err)

def test_every_published_table_has_its_place():
    "The overview leads from each table to a page that shows its values"
    root = Path(__file__).parents[1]
    with (root / 'headpursuit/data/published.csv').open(encoding='utf-8') as f:
        known = pd.read_csv(f).groupby('source').experiment.first()
    page = json.loads((root / 'nbs/experiments/index.ipynb').read_text(encoding='utf-8'))
    text = ''.join(''.join(c['source']) for c in page['cells'] if c['cell_type'] == 'markdown')
    rows = [[x.strip() for x in line.split('|')[1:-1]]
            for line in text.splitlines() if line.startswith('| ')][1:]
    places = {}
    for *_, link, source, _ in rows:
        places.setdefault(source, []).append(re.search(r'\((\w+\.ipynb)', link)[1])
    assert set(known.index) <= set(places)
    for source, experiment in known.items():
        for name in places[source]:
            shown = (root / 'nbs/experiments' / name).read_text(encoding='utf-8')
            assert f"published('{experiment}'" in shown, (source, name)
