"Print what the README shows first: one head of SmolLM2, its words, and answers before and after"
import textwrap

from headpursuit import Concept, HeadEdit, HeadModel, atlas, capture, generate
from headpursuit.facts import fact_words, recall_questions
from headpursuit.fetch import small_path
from headpursuit.ranking import rank_heads, token_counts

model = HeadModel.from_pretrained(small_path())
asked = recall_questions('train', 24)
prompts = asked['prompt'].tolist()
stats = capture(model, prompts, positions='last', progress=False)
countries = Concept.from_words(
    'countries', fact_words()['country of city'], model.tokenizer)
ranking = rank_heads(model, stats, countries, score='ratio', counts=token_counts(model, prompts),
                     n_draws=30, n_atoms=len(countries))
head, = ranking.top(1)
tokens = atlas(model, stats, 8, heads=[head], progress=False)['token']
edit = HeadEdit(head, alpha=-1)

print(f'first of {len(model.heads)} heads for countries: {head}')
print('it writes:', ' '.join(t.strip() for t in tokens), '\n')
questions = ['Oslo is in Norway.\nCairo is in Egypt.\nMadrid is in',
             'walk: walked\nplay: played\nopen:']
for prompt in questions:
    before, = generate(model, [prompt], max_new_tokens=3, stop='\n.')
    with edit.applied(model): after, = generate(model, [prompt], max_new_tokens=3, stop='\n.')
    shown = textwrap.shorten(prompt.replace('\n', ' / '), 60)
    print(f'{shown:48} {before:10} with the head flipped: {after}')
