from vlmtune.api.model import Model as Model
from vlmtune.api.model import load as load
from vlmtune.api.results import Prediction as Prediction
from vlmtune.api.results import Predictions as Predictions
from vlmtune.api.runs import Comparison as Comparison
from vlmtune.api.runs import Evaluation as Evaluation
from vlmtune.api.runs import Figures as Figures
from vlmtune.api.runs import Run as Run
from vlmtune.api.runs import compare as compare
from vlmtune.api.runs import evaluate as evaluate
from vlmtune.api.runs import export as export
from vlmtune.api.runs import serve as serve
from vlmtune.api.runs import train as train
from vlmtune.config.load import load_experiment as load_experiment
from vlmtune.config.schema import Experiment as Experiment
from vlmtune.errors import UserError as UserError

__version__: str
