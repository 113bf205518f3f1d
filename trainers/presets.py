"""The experiment files that `her2cache init` writes: every key with its meaning."""

from __future__ import annotations

_KEYS = """\
# {title}
# Run it:  her2cache sweep {name} --out sweeps/{stem}
# A key that is left out has the paper's value.

[data]
cohort = "cohort.csv"           # table of the slides; relative paths start at this file's folder
store = "store"                 # feature store that `her2cache embed` filled
# embedders to compare, by the name or the space key of their features:
embedders = [{embedders}]
views = {views:<24}# stored views of a patch (embed --views), of which training draws one an instance; the
                                # paper augments afresh at every step. Left out: whatever the store has
stain = "HE"                    # slides of the cohort to use: "HE" or "IHC"
random_seeds = {random_seeds:<17}# of alexnet-random: embed alexnet-random, alexnet-random=1, =2, ... for more
seeds_a_fold = "one"            # of several seeds fold k has the k-th, as the original drew it anew for every fold;
                                # "all": every fold has every seed, averaged

[task]
preset = "four"                 # "four": 0, 1+, 2+, 3+.  "paper-binary": 0, 1+ against 2+, 3+.  "her2-low": 0, then
                                # 1+ and 2+/ISH-, then 3+ and 2+/ISH+ (from the cohort's column ish)
# class_of_score = [0, 1, 1, 2] # classes of 0, 1+, 2+, 3+ of your own, instead of a preset

[splits]                        # stratified by score; a case is never on two sides
test_slides = {test_slides:<18}# fixed test set, unless the cohort has a column `split`
folds = {folds:<24}# cross-validation; "paper": KFold(5, shuffle) over slides, as the original
seed = 123                      # of test set and folds
nested = {nested:<23}# outer folds of a nested cross-validation over all cases, pooled: the figure to trust,
                                # at the cost of as many more sweeps; 0 leaves it out, as the paper did
# file = "splits.csv"           # the split of another sweep, or your own: slide_id, split, fold

[bags]
size = 100                      # patches a bag, drawn without replacement from one slide
per_epoch = {per_epoch:<20}# fresh bags a training epoch
validation = {validation:<19}# fixed bags that choose epoch and configuration
test = {test:<25}# fixed bags of the test slides
balanced = false                # true: every class equally often, rather than every slide
allow_replacement = false       # true: slides with fewer than `size` patches repeat them

[model]
attention_units = 256           # width of the attention layer, W2 in the paper's equation 1
attention = "tanh"              # "gated": hidden units times sigmoid(U v), as Ilse et al. 2018

[training]                      # Adam; every learning rate is tried with every weight decay
epochs = {epochs:<23}# the epoch of least validation loss is kept
patience = 0                    # epochs without a lower validation loss that end a run; 0: none does
batch_bags = 64                 # bags an optimiser step
# rates and L2 factors of the grid; [search] draws from the range between the least and the largest:
learning_rate = {learning_rate}
weight_decay = {weight_decay}
feature_norm = "none"           # "standardize": features of every embedder to mean 0 and SD 1 over the training slides
seed = 123                      # of initial weights and bags

[search]
method = "grid"                 # "random", "asha" (ends bad runs early) and "optuna" draw from the ranges of the lists
samples = 20                    # draws an embedder; the grid has no use for them
at_once = 4                     # draws an embedder that "optuna" trains at once; each knows the results of all others
seed = 123                      # of the draws

[testing]
configurations = "chosen"       # "all": test every configuration, not only that of least mean validation loss
"""

PAPER = _KEYS.format(
    title="The paper's experiment: 4 embedders x 5 folds x a grid of 20, 50 epochs each.",
    name="paper.toml",
    stem="paper",
    embedders='"alexnet-random", "alexnet-pcam", "alexnet-ihc", "alexnet-imagenet"',
    views=8,
    random_seeds=5,
    test_slides=8,
    nested=5,
    folds=5,
    per_epoch=6400,
    validation=2500,
    test=2500,
    epochs=50,
    learning_rate="[1e-3, 1e-4, 1e-5, 1e-6]",
    weight_decay="[1e-3, 1e-4, 1e-5, 1e-6, 1e-7]",
)

QUICK = _KEYS.format(
    title="A quick look, minutes on two cores: 2 embedders x 3 folds x a grid of 4, 8 epochs each.",
    name="quick.toml",
    stem="quick",
    embedders='"alexnet-random", "alexnet-imagenet"',
    views=1,
    random_seeds=1,
    test_slides=8,
    nested=0,
    folds=3,
    per_epoch=640,
    validation=500,
    test=500,
    epochs=8,
    learning_rate="[1e-3, 1e-4]",
    weight_decay="[1e-3, 1e-5]",
)
