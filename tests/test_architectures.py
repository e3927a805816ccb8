"Every supported family on a tiny random configuration: decomposition, padding, capture, edit, merge, adapter"
import copy

import pytest
import tiny
import torch
import transformers as tf
from accelerate import disk_offload
from peft import LoraConfig, PeftModel, get_peft_model

from headpursuit.capture import capture, head_samples
from headpursuit.dictionary import Concept
from headpursuit.editing import HeadEdit
from headpursuit.heads import HeadModel
from headpursuit.ranking import atlas, rank_by_logit_lens, rank_heads

TEXTS = ['The sky is blue', 'Grass', 'The secret number of item 7 is 259.', 'roses are red, go on']
FAMILIES = [*tiny.TEXT_CONFIGS, *tiny.VISION_CONFIGS]
EDIT = HeadEdit(['0.1', '1.3', '1.0'], [-1, 5, 0])


def load(family):
    "HeadModel and a batch of one that the model accepts"
    if family in tiny.TEXT_CONFIGS:
        return HeadModel(tiny.text_model(family), tiny.TOK), dict(tiny.TOK(TEXTS[0], return_tensors='pt', return_token_type_ids=False))
    model, inputs, processor = tiny.vision_model(family)
    return HeadModel(model, processor or tiny.TOK), dict(inputs('[image] ' + TEXTS[0], tiny.image()))


def logits(model, batch):
    with torch.no_grad(): return model(**batch).logits


@pytest.mark.parametrize('family', FAMILIES)
def test_sum_of_heads_is_the_attention_output(family):
    model, batch = load(family)
    z, attention, stream = {}, {}, {}
    raw = [p.register_forward_pre_hook(lambda m, a, l=l: z.__setitem__(l, a[0])) for l, p in enumerate(model.projections)]
    raw += [p.register_forward_hook(lambda m, a, out, l=l: attention.__setitem__(l, out)) for l, p in enumerate(model.projections)]
    logits(model.model, batch)
    for h in raw: h.remove()
    for l, p in enumerate(model.projections):
        parts = torch.einsum('bshk,hdk->bshd', z[l].unflatten(-1, (model.n_heads, model.head_dim)), model.W_O(l))
        bias = 0 if getattr(p, 'bias', None) is None else p.bias
        torch.testing.assert_close(parts.sum(-2) + bias, attention[l], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_writes_add_up_to_what_enters_the_residual_stream(family):
    "Checked against the module whose output is added to the stream: the post-norm where the family has one"
    model, batch = load(family)
    z, written = {}, {}
    modules = [p if n is None else n for p, n in zip(model.projections, model.post_norms)]
    handles = [m.register_forward_hook(lambda m, a, out, l=l: written.__setitem__(l, out)) for l, m in enumerate(modules)]
    with torch.no_grad(), model.watch(z.__setitem__): model.model(**batch)
    for h in handles: h.remove()
    for l in range(model.n_layers):
        bias = getattr(model.projections[l], 'bias', None)
        torch.testing.assert_close(model.contributions(l, z[l]).sum(-2) + (0 if bias is None else bias), written[l], atol=1e-5, rtol=1e-4)


def test_post_norm_is_found_only_where_it_exists():
    post = {f for f in FAMILIES if load(f)[0].post_norms[0] is not None}
    assert post == {'gemma2', 'gemma3', 'gemma3_vision', 'hyperclovax', 'olmo2'}


@pytest.mark.parametrize('family', tiny.TEXT_CONFIGS)
def test_capture_does_not_depend_on_batch_or_padding(family):
    model = HeadModel(tiny.text_model(family), tiny.tokenizer())
    for rule in ('prompt', 'last', 'all'):
        one = capture(model, TEXTS, positions=rule, batch_size=1, progress=False)
        for side in ('left', 'right'):
            many = capture(model, [model.encode(TEXTS, padding_side=side)], positions=rule, progress=False)
            assert many.count == one.count and many.prompt_hash == one.prompt_hash
            torch.testing.assert_close(many.mean, one.mean, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(many.scatter, one.scatter, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('family', tiny.VISION_CONFIGS)
def test_image_positions_are_the_image_tokens_of_the_backbone(family):
    model, batch = load(family)
    n_image = int((batch['input_ids'] == model.image_token_id).sum())
    assert n_image > 0 and all('vision' not in n and 'visual' not in n for n in model.projection_names)
    z = {}
    with torch.no_grad(), model.watch(z.__setitem__): model.model(**batch)
    where = batch['input_ids'][0] == model.image_token_id
    expected = torch.stack([z[l][0, where].mean(0) for l in range(model.n_layers)])
    torch.testing.assert_close(head_samples(model, batch, 'image')[0], expected, atol=1e-5, rtol=1e-4)
    stats = capture(model, [batch], progress=False)
    assert stats.positions == 'image' and stats.count == 1


@pytest.mark.parametrize('family', ['llava', 'llava_next', 'gemma3_vision'])
def test_images_pass_through_the_processor(family):
    model, _ = load(family)
    text = {'gemma3_vision': '<start_of_image>'}.get(family, '<image>') + ' The sky is'
    samples = [dict(text=text, image=tiny.image(i)) for i in range(3)]
    stats = capture(model, samples, batch_size=2, progress=False)
    assert stats.count == 3 and stats.positions == 'image'
    alone = sum(capture(model, [s], progress=False) for s in samples)
    torch.testing.assert_close(stats.mean, alone.mean, atol=1e-5, rtol=1e-4)
    assert stats.prompt_hash == alone.prompt_hash
    mixed = capture(model, [samples[0], 'Grass', samples[2]], positions='prompt', progress=False)  # with and without a picture
    apart = sum(capture(model, [s], positions='prompt', progress=False) for s in (samples[0], 'Grass', samples[2]))
    torch.testing.assert_close(mixed.mean, apart.mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_hook_merge_and_adapter_are_the_same_edit(family, tmp_path):
    model, batch = load(family)
    plain = logits(model.model, batch)
    with EDIT.applied(model): edited = logits(model.model, batch)
    assert (edited - plain).abs().max() > 1e-4
    torch.testing.assert_close(logits(model.model, batch), plain, atol=0, rtol=0)
    EDIT.save(tmp_path, model)
    assert HeadEdit.load(tmp_path, model).alphas == EDIT.alphas
    merged = EDIT.merge(copy.deepcopy(model.model))
    torch.testing.assert_close(logits(merged, batch), edited, atol=1e-5, rtol=1e-4)
    adapted = PeftModel.from_pretrained(model.model, str(tmp_path)).eval()
    torch.testing.assert_close(logits(adapted, batch), edited, atol=1e-5, rtol=1e-4)
    with adapted.disable_adapter(): torch.testing.assert_close(logits(adapted, batch), plain, atol=1e-5, rtol=1e-4)


def answers(model, batch):
    "All that the library computes with a model's weights"
    batch = {k: v.to(model.device) for k, v in batch.items()}
    concept = Concept.from_words('things', ['sky', 'grass', 'roses', 'item'], tiny.TOK, multi='word')
    stats = capture(model, [batch] * 2, positions='all', samples=True, progress=False)
    yield stats.scatter
    for rule in ('magnitude', 'energy'):
        yield torch.tensor(rank_heads(model, stats, concept, n_atoms=2, rule=rule).grid())
        yield torch.tensor(atlas(model, stats, 2, rule=rule, progress=False)[['token_id', 'explained']].to_numpy())
    yield torch.tensor(rank_heads(model, stats, concept).grid())
    yield torch.tensor(rank_by_logit_lens(model, stats, concept, fold_norm=True).grid())
    with EDIT.applied(model): yield logits(model.model, batch).cpu()


@pytest.mark.parametrize('family', [f for f in FAMILIES if f != 'idefics3'])  # whose own forward pass does not run with its vision tower on disk
def test_a_model_on_disk_gives_the_same_answers(family, tmp_path):
    "As `device_map='auto'` leaves it when the model is larger than the device: weights come in for one layer at a time"
    here, batch = load(family)
    there = HeadModel(disk_offload(copy.deepcopy(here.model), str(tmp_path / 'weights'), execution_device='cpu'), here.processor)
    assert all(p.is_meta for p in there.model.parameters()) and there.device.type == 'cpu'
    for a, b in zip(answers(here, batch), answers(there, batch), strict=True): torch.testing.assert_close(b, a, atol=0, rtol=0)
    with pytest.raises(ValueError, match='offloaded'): EDIT.merge(there)
    EDIT.save(tmp_path / 'edit', there)
    assert HeadEdit.load(tmp_path / 'edit', here).alphas == EDIT.alphas


@pytest.mark.parametrize('doubles', [True, False], ids=['double precision', 'single precision only'])
@pytest.mark.parametrize('family', FAMILIES)
def test_answers_do_not_depend_on_the_device(family, doubles):
    "On a make-believe device, where two tensors of different devices do not mix; without double precision it is like Apple's GPUs"
    away = pytest.importorskip('away', exc_type=ImportError)
    here, batch = load(family)
    there = HeadModel(away.send(copy.deepcopy(here.model)), here.processor)
    with away.present(doubles):
        assert there.device == away.DEVICE and there.exact_device == (away.DEVICE if doubles else torch.device('cpu'))
        with pytest.raises(RuntimeError, match='two devices'): there.W_O(0) @ torch.ones(here.head_dim)
        found = list(answers(there, batch))
    for a, b in zip(answers(here, batch), found, strict=True):
        assert b.device.type == 'cpu'
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


def test_merged_edit_is_a_plain_checkpoint(tmp_path):
    model, batch = load('llama')
    edit = HeadEdit(['0.1'], -1)
    with edit.applied(model): edited = logits(model.model, batch)
    edit.merge(model).save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(model.model).from_pretrained(tmp_path), batch), edited, atol=1e-5, rtol=1e-4)


def test_unknown_family_says_what_was_looked_for():
    lm = tiny.text_model('llama')
    del lm.model.layers[0].self_attn.o_proj
    with pytest.raises(ValueError, match='layer 0.*looked for.*self_attn.*o_proj'): HeadModel(lm)


def test_a_family_that_changes_what_heads_write_is_refused():
    image = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, embed_dim=16, num_embeddings=16, latent_channels=16, resolution=16)
    chameleon = lambda **k: HeadModel(tf.AutoModelForImageTextToText.from_config(tf.ChameleonConfig(**tiny.TEXT, vq_config=image, vocabulary_map={'<image>': 4}, **k)))
    assert chameleon().n_heads == 4
    with pytest.raises(ValueError, match="ChameleonSwinDecoderLayer.*'swin_norm'"): chameleon(swin_norm=True)


@pytest.mark.parametrize('family', tiny.TEXT_CONFIGS)
def test_the_fingerprint_sees_every_head_and_every_other_weight(family):
    model = HeadModel(tiny.text_model(family))
    seen = {model.fingerprint()}
    for h in model.heads: seen.add(HeadModel(HeadEdit(h, -1).merge(copy.deepcopy(model.model))).fingerprint())
    for p in model.model.parameters():
        q = p.detach().clone()
        with torch.no_grad(): p.add_(.1)
        seen.add(model.fingerprint())
        with torch.no_grad(): p.copy_(q)
    assert len(seen) == 1 + len(model.heads) + len(list(model.model.parameters()))


def test_compiled_models_are_read_and_edited():
    model, batch = load('llama')
    stats, compiled = capture(model, [batch], progress=False), copy.deepcopy(model.model)
    compiled.compile(backend='eager')
    logits(compiled, batch)
    torch.testing.assert_close(capture(compiled, [batch], progress=False).mean, stats.mean, atol=1e-6, rtol=1e-5)
    with EDIT.applied(model): edited = logits(model.model, batch)
    with EDIT.applied(compiled): torch.testing.assert_close(logits(compiled, batch), edited, atol=1e-5, rtol=1e-4)


def test_without_a_tokenizer_the_same_tokens_count():
    model, _ = load('llama')
    batch = {k: torch.cat([torch.ones_like(v[:, :1]), v], 1) for k, v in model.encode(TEXTS).items()}
    assert batch['input_ids'][0, 0] == 1  # <s>
    torch.testing.assert_close(capture(model.model, [batch], progress=False).mean, capture(model, [batch], progress=False).mean, atol=0, rtol=0)


def test_folded_dictionary_handles_a_narrow_embedding():
    model, _ = load('opt')  # word_embed_proj_dim 16, width 32
    assert model.dictionary().atoms.shape == (len(tiny.TOK), 32)


def test_atoms_of_a_tokenizer_with_byte_tokens_are_the_ones_that_are_written():
    tok = tiny.llama_tokenizer()
    digits = Concept.from_words('digits', list('0123456789'), tok, case=False, plural=False)
    names = tok.convert_ids_to_tokens(digits.ids)
    assert {n.strip('▁') for n in names} == set('0123456789') and tok.decode(tok.convert_tokens_to_ids(['<0x37>'])) == '7'
    sky = Concept.from_words('sky', ['sky'], tok, case=False, plural=False)
    assert set(tok.convert_ids_to_tokens(sky.ids)) == {'▁sky', 'sky'}
    cut = Concept.from_words('cut', ['mauve'], tok, multi='pieces')
    assert '▁' not in tok.convert_ids_to_tokens(cut.ids) and len(cut) > 1


def test_an_adapter_has_to_be_merged_first():
    lm = get_peft_model(tiny.text_model('llama'), LoraConfig(target_modules=['o_proj'], init_lora_weights=False)).eval()
    with pytest.raises(ValueError, match='merge_and_unload'): HeadModel(lm.base_model.model)
    assert HeadModel(lm.merge_and_unload()).n_heads == 4


@pytest.mark.parametrize('config', [tf.CohereConfig(**tiny.TEXT), tf.NemotronConfig(**tiny.TEXT), tf.OlmoConfig(**tiny.TEXT)])
def test_folding_works_for_every_kind_of_final_norm(config):
    "The folded dictionary gives the model's own logits, up to one factor for each token and what does not depend on the input"
    torch.manual_seed(0)
    model, seen = HeadModel(tiny.randomise(tf.AutoModelForCausalLM.from_config(config)).eval(), tiny.TOK), []
    handle = model.final_norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    found = logits(model.model, tiny.TOK(TEXTS[0], return_tensors='pt', return_token_type_ids=False))
    handle.remove()
    bias = getattr(model.final_norm, 'bias', None)
    if bias is not None: found = found - model.model.get_output_embeddings().weight @ bias
    ours = seen[0] @ model.dictionary(fold_norm=True).atoms.T
    torch.testing.assert_close(torch.cosine_similarity(found, ours, dim=-1), torch.ones(found.shape[:2]), atol=1e-4, rtol=0)
