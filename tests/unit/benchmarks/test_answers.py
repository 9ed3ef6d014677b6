import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.answers import Question, batches, pack, score


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def plainly(model, question):
    """One forward pass for each continuation, in float64."""
    for choice in question.choices:
        tokens = torch.tensor([[*question.context, *choice]])
        with torch.inference_mode():
            log_p = model(tokens).logits[0].double().log_softmax(-1)
        rows = range(len(question.context) - 1, tokens.shape[1] - 1)
        found = sum(log_p[row, token].item() for row, token in zip(rows, choice, strict=True))
        yield found, [int(log_p[row].argmax()) for row in rows] == list(choice)


def test_packed_questions_score_as_each_of_them_alone(model):
    generator = torch.Generator().manual_seed(1)

    def tokens(size):
        return tuple(torch.randint(97, (size,), generator=generator).tolist())

    questions = [
        Question(tokens(7), (tokens(3), tokens(1), tokens(5))),
        Question(tokens(1), (tokens(1),)),
        Question(tokens(12), (tokens(2), tokens(2))),
    ]
    with torch.inference_mode():
        greedy = int(model(torch.tensor([questions[1].context])).logits[0, -1].argmax())
    questions.append(Question(questions[1].context, ((greedy,),)))
    for question, found in zip(questions, score(model, questions), strict=True):
        expected = list(plainly(model, question))
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
        assert [one[1] for one in found] == [one[1] for one in expected]
    assert score(model, questions)[3][0][1] is True


def test_a_batch_holds_at_most_its_limit_and_every_question_once():
    questions = [Question((1,) * size, ((2, 3), (4,))) for size in (5, 900, 200, 1500, 3)]
    found = list(batches(questions))
    assert [number for batch in found for number in batch] == list(range(5))
    assert found == [[0, 1], [2], [3], [4]]
    assert len(pack(questions[:2]).tokens) == sum(question.num_tokens for question in questions[:2])
