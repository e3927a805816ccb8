from pathlib import Path
def small_path(name='text') -> Path:
    p=Path('/tmp/w/smol_folder')
    if not p.exists(): raise ValueError('run headpursuit fetch smollm2')
    return p

def fetch_smollm2(folder=None): return small_path()
