"The table of facts and the questions made of it"
import re

import pytest

from headpursuit.facts import (QUESTIONS, RELATIONS, copy_questions, fact_words, facts, overlaps,
                               recall_questions, related)

SPLITS = ('train', 'validation', 'test')
TABLE = facts()
GEOGRAPHY = ('capital', 'continent', 'language', 'demonym')


class Tokenizer:
    "A chat template that marks the beginning of a text, as the tokenizer does itself"
    chat_template = 'there is one'
    bos_token, bos_token_id = '<s>', 1

    def __init__(self, marks: bool): self.marks = marks

    def __call__(self, text):
        return type('Encoding', (), dict(input_ids=[1, 5] if self.marks else [5]))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        end = ' ASSISTANT:' if add_generation_prompt else ''
        return '<s>' + ' '.join(f'{m["role"].upper()}: {m["content"]}' for m in messages) + end


def has_word(text: str, word: str) -> bool:
    return re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text) is not None


def test_facts_are_written_well():
    columns = TABLE[['relation', 'subject', 'answer']]
    assert (columns == columns.apply(lambda c: c.str.strip())).all(axis=None)
    assert (columns != '').all(axis=None)
    assert not TABLE.assign(subject=TABLE.subject.str.lower()).duplicated(
        ['relation', 'subject'])[TABLE.relation != 'element'].any()
    assert not TABLE.duplicated(['relation', 'subject']).any()


def test_every_relation_is_large_enough():
    sizes = TABLE.groupby('relation')['split'].value_counts().unstack()
    assert list(RELATIONS) == list(QUESTIONS) == list(TABLE.relation.unique())
    assert len(RELATIONS) >= 12
    assert sizes.sum(axis=1).min() >= 60
    assert sizes['test'].min() >= 25
    assert sizes['validation'].min() >= 10
    assert sizes['train'].min() >= 30


def test_subject_decides_the_split():
    assert TABLE.groupby('subject')['split'].nunique().max() == 1
    assert set(TABLE['split']) == set(SPLITS)
    shares = TABLE.drop_duplicates('subject')['split'].value_counts(normalize=True)
    assert shares['train'] == pytest.approx(1 / 2, abs=.05)
    assert shares['validation'] == pytest.approx(1 / 6, abs=.05)
    assert shares['test'] == pytest.approx(1 / 3, abs=.05)


def test_split_is_stable():
    known = dict(France='validation', Greece='train', go='test', eagle='train')
    splits = TABLE.set_index('subject').split
    assert splits[[*known]].to_dict() == known


def test_words_cover_all_answers():
    words = fact_words()
    for relation, group in TABLE.groupby('relation'):
        assert set(words[relation]) == set(group.answer)
        assert len(words[relation]) == len(set(words[relation]))


@pytest.mark.parametrize('split', SPLITS)
def test_recall_asks_every_fact_of_the_split_once(split):
    questions = recall_questions(split)
    asked = questions[['concept', 'subject', 'answer']].sort_values(['concept', 'subject'])
    there = TABLE[TABLE['split'] == split].sort_values(['relation', 'subject'])
    assert asked.values.tolist() == there[['relation', 'subject', 'answer']].values.tolist()


@pytest.mark.parametrize('split', SPLITS)
def test_answer_of_recall_is_not_in_the_prompt(split):
    for q in recall_questions(split).itertuples():
        assert q.prompt.endswith(RELATIONS[q.concept].format(q.subject))
        assert not has_word(q.prompt, q.answer), q.prompt


@pytest.mark.parametrize('split', SPLITS)
def test_examples_are_other_facts_of_train(split):
    train = TABLE[TABLE['split'] == 'train']
    lines = {r: {f'{RELATIONS[r].format(f.subject)} {f.answer}\n': f
                 for f in group.itertuples()} for r, group in train.groupby('relation')}
    for q in recall_questions(split, 10, shots=3).itertuples():
        shown = q.prompt.removesuffix(RELATIONS[q.concept].format(q.subject))
        examples = []
        while shown:
            line = next(text for text in lines[q.concept] if shown.startswith(text))
            examples.append(lines[q.concept][line])
            shown = shown.removeprefix(line)
        assert len({e.answer for e in examples}) == len({e.subject for e in examples}) == 3
        assert q.subject not in {e.subject for e in examples}


def test_no_shots_leave_the_question_alone():
    for q in recall_questions('validation', 2, shots=0).itertuples():
        assert q.prompt == RELATIONS[q.concept].format(q.subject)
    assert copy_questions('validation', 1, shots=0).prompt.str.endswith(' ->').all()


def test_too_many_shots_are_refused():
    with pytest.raises(ValueError, match="'continent' has only 5 examples .* fewer than 6 shots"):
        recall_questions('test', 1, shots=6)


@pytest.mark.parametrize('make', [recall_questions, copy_questions])
def test_seed_decides(make):
    first = make('test', 5)
    assert first.equals(make('test', 5, seed=0))
    assert not first.equals(make('test', 5, seed=1))
    head = make('test', 9).groupby('concept', sort=False).head(5).reset_index(drop=True)
    assert first.equals(head)
    assert first.concept.value_counts().eq(5).all()


@pytest.mark.parametrize('make', [recall_questions, copy_questions])
def test_unknown_split(make):
    with pytest.raises(ValueError, match='test, validation, train'):
        make('dev', 1)


@pytest.mark.parametrize('marks', [True, False])
def test_chat(marks):
    questions = recall_questions('test', 1, chat=True, tokenizer=Tokenizer(marks))
    for q in questions.itertuples():
        assert q.prompt.startswith('USER: ' if marks else '<s>USER: ')
        assert q.prompt.endswith(' ASSISTANT:')
        assert QUESTIONS[q.concept].format(q.subject) in q.prompt
        assert not has_word(q.prompt, q.answer)


def test_chat_needs_a_template():
    with pytest.raises(ValueError, match='pass tokenizer'):
        recall_questions('test', 1, chat=True)


@pytest.mark.parametrize('split', SPLITS)
def test_copying_asks_for_words_of_the_split(split):
    words = fact_words()
    mine = TABLE[TABLE['split'] == split].groupby('relation')['answer'].agg(set)
    train = set(TABLE[TABLE['split'] == 'train'].answer)
    questions = copy_questions(split)
    for q in questions.itertuples():
        *examples, line = q.prompt.split('\n')
        assert line == f'{q.answer} ->'
        assert q.answer in mine[q.concept]
        for example in examples:
            word, copy = example.split(' -> ')
            assert word == copy and word in train and word not in words[q.concept]
    assert questions.groupby('concept')['answer'].agg(set).equals(mine)


def test_copying_repeats_words_with_other_examples():
    questions = copy_questions('test', 20)
    assert questions.concept.value_counts().eq(20).all()
    assert not questions.duplicated(['concept', 'prompt']).any()


def test_overlaps_agree_with_the_table():
    o = overlaps().set_index(['relation', 'other'])
    def words(relation, column): return set(TABLE[TABLE.relation == relation][column])
    a, b = words('language', 'answer'), words('demonym', 'answer')
    assert o.answers['language', 'demonym'] == len(a & b) / len(a | b) > 0
    countries, capitals = words('country of city', 'answer'), words('capital', 'subject')
    shared = len(countries & capitals) / len(countries | capitals)
    assert o.crossed['country of city', 'capital'] == shared > 0


def test_related():
    square = related()
    assert list(square.index) == list(square.columns) == list(RELATIONS)
    assert (square == square.T).all(axis=None)
    assert not any(square.loc[r, r] for r in RELATIONS)
    assert all(square.loc[a, b] for a in GEOGRAPHY for b in GEOGRAPHY if a != b)
    assert not square.loc['capital', 'plural']
    assert (related(.5) <= related(.1)).all(axis=None)


@pytest.mark.parametrize('make', [recall_questions, copy_questions])
def test_no_questions_are_refused(make):
    with pytest.raises(ValueError, match='at least 1, got 0'):
        make('test', 0)
