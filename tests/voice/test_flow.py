"""The flow against the reference fixtures, and against itself: streaming, batching, learning."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omnilib.voice import flow_encoder
from omnilib.voice.flow import (
    Draws,
    EncoderConfig,
    EstimatorConfig,
    Flow,
    FlowConfig,
    cosine_times,
    fixed_noise,
    gaussian_velocity,
    length_mask,
)


def reference_config(c: dict) -> FlowConfig:
    """Our names for the sizes of a fixture; what our classes do not vary must have the value they implement."""
    flow, encoder, decoder, estimator = c["flow"], c["encoder"], c["decoder"], c["estimator"]
    assert encoder["input_size"] == encoder["output_size"] == flow["input_size"]
    assert flow["token_mel_ratio"] == 2 and estimator["in_channels"] == 4 * flow["output_size"]
    assert encoder["normalize_before"] and not encoder["use_cnn_module"] and not encoder["macaron_style"]
    assert (
        decoder["t_scheduler"] == "cosine" and decoder["solver"] == "euler" and estimator["act_fn"] == "gelu"
    )
    return FlowConfig(
        vocab=flow["vocab_size"],
        mels=flow["output_size"],
        speaker_dim=flow["spk_embed_dim"],
        sigma_min=decoder["sigma_min"],
        guidance=decoder["inference_cfg_rate"],
        guidance_drop=decoder["training_cfg_rate"],
        encoder=EncoderConfig(
            width=encoder["output_size"],
            heads=encoder["attention_heads"],
            linear_units=encoder["linear_units"],
            blocks=encoder["num_blocks"],
            up_blocks=encoder["num_up_blocks"],
            look_ahead=flow["pre_lookahead_len"],
            chunk=encoder["static_chunk_size"],
        ),
        estimator=EstimatorConfig(
            channels=estimator["channels"],
            heads=estimator["num_heads"],
            head_dim=estimator["attention_head_dim"],
            blocks=estimator["n_blocks"],
            mid_blocks=estimator["num_mid_blocks"],
            chunk=estimator["static_chunk_size"],
        ),
    )


def reference_flow(info: dict, tensors: dict) -> Flow:
    return tensors.load_into(Flow(reference_config(info["config"]))).eval()


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), reference.float(), atol=tolerance, rtol=0)


RUNS = {
    "finalize": (False, True),
    "stream": (True, False),
    "stream_finalize": (True, True),
    "nostream_notfinal": (False, False),
}


@pytest.mark.parametrize("run", RUNS)
def test_inference_matches_the_reference(golden, run):
    info, x = golden("flow_inference")
    flow, (streaming, finalize) = reference_flow(info, x), RUNS[run]
    encoder_tolerance = info["tolerance"]["encoder abs"]
    tokens, prompt = x["in.token"].long(), x["in.prompt_token"].long()

    encoded = {}
    hook = flow.encoder.register_forward_hook(lambda _m, _i, output: encoded.update(out=output))
    mel = flow.inference(tokens, prompt, x["in.prompt_feat"], x["in.embedding"], streaming, finalize)
    hook.remove()

    if x.has(f"out.{run}.encoder"):
        close(encoded["out"], x[f"out.{run}.encoder"], encoder_tolerance)
    if x.has(f"out.{run}.mel"):
        close(mel, x[f"out.{run}.mel"], info["tolerance"]["mel abs"])


@pytest.mark.parametrize("run", ["finalize", "stream"])
def test_first_velocity_matches_the_reference(golden, run):
    info, x = golden("flow_inference")
    flow, (streaming, finalize) = reference_flow(info, x), RUNS[run]
    all_tokens = torch.cat([x["in.prompt_token"], x["in.token"]], 1).long()
    with torch.inference_mode():
        mu = flow.encode(all_tokens, x["in.embedding"], None, streaming, finalize)
        frames = mu.shape[1]
        prompt = torch.zeros_like(mu)
        prompt[:, : x["in.prompt_feat"].shape[1]] = x["in.prompt_feat"]
        conditions = [mu, prompt, flow.project_speaker(x["in.embedding"])]
        mu, prompt, speaker = (torch.cat([c, torch.zeros_like(c)]) for c in conditions)
        x0 = fixed_noise(flow.config.mels)[:, :, :frames].transpose(1, 2).expand(2, -1, -1)
        v = flow.decoder.estimator(x0, mu, torch.zeros(2), speaker, prompt, None, streaming)

    if x.has("in.noise"):
        assert torch.equal(fixed_noise(flow.config.mels)[:, :, : x["in.noise"].shape[2]], x["in.noise"])
    if x.has(f"out.{run}.est0_in_mu"):
        close(mu.transpose(1, 2), x[f"out.{run}.est0_in_mu"], info["tolerance"]["encoder abs"])
    if f"out.{run}.est0_in_spks" in x:
        close(speaker, x[f"out.{run}.est0_in_spks"], 1e-6)
        close(prompt.transpose(1, 2), x[f"out.{run}.est0_in_cond"], 0)
        close(x0.transpose(1, 2), x[f"out.{run}.est0_in_x"], 0)
    if x.has(f"out.{run}.est0_out"):
        close(v.transpose(1, 2), x[f"out.{run}.est0_out"], info["tolerance"]["est0_out abs"])
    if x.has(f"out.{run}.t_values"):
        close(cosine_times(info["config"]["decoder"]["n_timesteps"])[:-1], x[f"out.{run}.t_values"], 1e-6)


@pytest.mark.parametrize("case", ["full", "chunked"])
def test_training_loss_and_gradients_match_the_reference(golden, case):
    info, x = golden("flow_training")
    flow = reference_flow(info, x)
    lengths, streaming = x["in.speech_token_len"], case == "chunked"
    x1, prompt = x["in.speech_feat"], x[f"in.{case}.cond"].transpose(1, 2)
    keep = x[f"in.{case}.cfg_draw"] > info["config"]["decoder"]["training_cfg_rate"]
    draws = Draws(x[f"in.{case}.t"], x[f"in.{case}.z"].transpose(1, 2), keep)
    mu = flow.encode(x["in.speech_token"], x["in.embedding"], lengths, streaming, zero_padding=False)
    speaker, valid = flow.project_speaker(x["in.embedding"]), length_mask(2 * lengths, x1.shape[1])
    loss, v = flow.decoder.loss(x1, valid, mu, speaker, prompt, draws, streaming)
    loss.backward()

    tolerance = info["tolerance"]
    mask = valid[:, None]
    if x.has(f"out.{case}.mask"):
        assert torch.equal(mask.float(), x[f"out.{case}.mask"])
    if x.has(f"out.{case}.spks"):
        close(speaker, x[f"out.{case}.spks"], tolerance["pred/mu abs"])
    if x.has(f"out.{case}.mu"):
        close(mu.transpose(1, 2) * mask, x[f"out.{case}.mu"] * mask, tolerance["pred/mu abs"])
    if x.has(f"out.{case}.pred"):
        close(v.transpose(1, 2), x[f"out.{case}.pred"], tolerance["pred/mu abs"])
    if x.has(f"out.{case}.loss"):
        assert loss.item() == pytest.approx(x[f"out.{case}.loss"].item(), rel=tolerance["loss rel"])
    parameters = dict(flow.named_parameters())
    norms = {k.split("gradnorm.")[1]: v.item() for k, v in x.items() if f"out.{case}.gradnorm." in k}
    assert norms or not x.has(f"out.{case}.gradnorm.*")
    for name, norm in norms.items():
        assert parameters[name].grad.double().norm().item() == pytest.approx(
            norm, rel=tolerance["gradnorm rel"]
        ), name


def test_full_size_has_the_published_keys_shapes_and_noise(golden):
    info, _ = golden("state_dict_keys_full")
    with torch.device("meta"):
        flow = Flow(FlowConfig())
    assert {k: list(v.shape) for k, v in flow.state_dict().items()} == info["flow"]
    assert sum(p.numel() for p in flow.parameters()) == info["parameters"]["flow"]
    noise, expected = fixed_noise(), info["fixed_noise"]
    assert list(noise.shape) == expected["shape"]
    assert noise[0, 0, : len(expected["first_values"])].tolist() == expected["first_values"]
    assert noise[0, 1, : len(expected["channel1_first"])].tolist() == expected["channel1_first"]
    assert noise[0, -1, -1].item() == expected["last"]


# ---------------------------------------------------------------- equivalences, on a small model of our own

CHUNK = 5


def small_flow(channels=(16,), seed: int = 0, prior: bool = False) -> Flow:
    torch.manual_seed(seed)
    flow = Flow(
        FlowConfig(
            vocab=30,
            mels=8,
            speaker_dim=6,
            mel_mean=-5.0,
            mel_std=2.0,
            prior_variance=0.35 if prior else 0.0,
            speaker_prior=prior,
            encoder=EncoderConfig(
                width=16, heads=2, linear_units=32, blocks=1, up_blocks=1, chunk=CHUNK, dropout=0.0
            ),
            estimator=EstimatorConfig(
                channels=list(channels), heads=2, head_dim=8, blocks=1, mid_blocks=1, chunk=2 * CHUNK
            ),
        )
    )
    torch.nn.init.normal_(flow.decoder.estimator.final_proj.weight, std=0.2)
    return flow.eval()


def small_input(tokens: int, prompt: int = 7, seed: int = 1, batch: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (batch, tokens), generator=g)
    prompt_ids = torch.randint(0, 30, (batch, prompt), generator=g)
    mel = torch.randn(batch, 2 * prompt, 8, generator=g) * 2 - 5
    return [ids, prompt_ids, mel, torch.randn(batch, 6, generator=g)]


def test_fixed_noise_leaves_the_global_generator_alone():
    fixed_noise.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fixed_noise()
    assert torch.equal(torch.get_rng_state(), before)


def test_streaming_prefix_is_unchanged_when_tokens_follow():
    flow = small_flow()
    tokens, *voice = small_input(40)
    whole = flow.inference(tokens, *voice, streaming=True, finalize=True, n_timesteps=3)
    first = flow.inference(
        tokens[:, : 3 * CHUNK - 7 + 3], *voice, streaming=True, finalize=False, n_timesteps=3
    )
    assert first.shape[2] == 2 * (3 * CHUNK - 7)
    torch.testing.assert_close(whole[:, :, : first.shape[2]], first, atol=1e-5, rtol=0)


def test_full_context_does_look_at_later_tokens():
    flow = small_flow()
    tokens, *voice = small_input(40)
    whole = flow.inference(tokens, *voice, n_timesteps=3)
    first = flow.inference(tokens[:, :20], *voice, n_timesteps=3)
    assert (whole[:, :, :20] - first[:, :, :20]).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", [0, 3, 7, 13])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [3, 17, 2, 18], [5, 5, 30]])
def test_cached_stream_equals_one_streaming_pass(prompt, pieces):
    flow = small_flow(prior=prompt == 7)
    tokens, *voice = small_input(40, prompt)
    whole = flow.inference(tokens, *voice, streaming=True, finalize=True, n_timesteps=3)
    stream, out, at = flow.stream(*voice, n_timesteps=3), [], 0
    for size in pieces:
        out.append(stream.push(tokens[:, at : at + size]))
        at += size
    out.append(stream.push(tokens[:, :0], last=True))
    torch.testing.assert_close(torch.cat(out, 2), whole, atol=1e-5, rtol=0)


def test_beyond_the_longest_table_positions_are_the_same_and_none_is_kept(monkeypatch):
    attention = flow_encoder.RelativeAttention(8, 2, 0.0).eval()
    with torch.inference_mode():
        from_table = attention.places(5, 20).clone()
        attention.table = None
        monkeypatch.setattr(flow_encoder, "LONGEST_TABLE", 19)
        torch.testing.assert_close(attention.places(5, 20), from_table)
    assert attention.table is None


def test_stream_speaks_as_soon_as_a_chunk_and_the_look_ahead_are_there():
    flow = small_flow()
    tokens, *voice = small_input(40, prompt=CHUNK)
    stream = flow.stream(*voice, n_timesteps=2)
    assert stream.push(tokens[:, : CHUNK + 2]).shape[2] == 0
    assert stream.push(tokens[:, CHUNK + 2 : CHUNK + 3]).shape[2] == 2 * CHUNK


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("finalize", [False, True])
@pytest.mark.parametrize("channels", [(16,), (16, 24)])
def test_batch_equals_one_by_one(streaming, finalize, channels):
    flow = small_flow(channels)
    tokens, prompt, mel, speaker = small_input(24, prompt=8, batch=3)
    counts, prompts = torch.tensor([24, 11, 17]), torch.tensor([3, 8, 5])
    together = flow.inference(
        tokens,
        prompt,
        mel,
        speaker,
        streaming,
        finalize,
        n_timesteps=3,
        token_lengths=counts,
        prompt_lengths=prompts,
    )
    for i, (n, p) in enumerate(zip(counts.tolist(), prompts.tolist(), strict=True)):
        row = slice(i, i + 1)
        alone = flow.inference(
            tokens[row, :n], prompt[row, :p], mel[row, : 2 * p], speaker[row], streaming, finalize, 3
        )
        torch.testing.assert_close(together[row, :, : alone.shape[2]], alone, atol=2e-5, rtol=0)
        assert together[i, :, alone.shape[2] :].abs().sum() == 0


def test_training_loss_does_not_depend_on_padding():
    flow = small_flow()
    tokens, _, _, speaker = small_input(10)
    mel = torch.randn(1, 8, 20)
    draws = Draws(torch.tensor([[[0.4]]]), torch.randn(1, 20, 8), torch.tensor([True]))
    frames = torch.tensor([6])
    alone = flow.loss(tokens, torch.tensor([10]), mel, speaker, frames, False, draws)
    pad = torch.nn.functional.pad
    wide = Draws(draws.t, pad(draws.x0, (0, 0, 0, 8), value=3.0), draws.keep)
    padded = flow.loss(
        pad(tokens, (0, 4), value=9),
        torch.tensor([10]),
        pad(mel, (0, 8), value=1.0),
        speaker,
        frames,
        False,
        wide,
    )
    assert padded.item() == pytest.approx(alone.item(), rel=1e-5)


def test_guidance_zero_ignores_the_free_half():
    flow = small_flow()
    inputs = small_input(12)
    guided = flow.inference(*inputs, n_timesteps=2)
    flow.decoder.guidance = 0.0
    assert (flow.inference(*inputs, n_timesteps=2) - guided).abs().max() > 1e-4


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 1.0])
def test_gaussian_velocity_is_the_mean_of_what_could_have_been(t):
    """Among samples of (x0, x1) that meet at x_t, x1 - x0 has the mean the formula gives: here by linear regression."""
    mu, variance = 0.7, 0.35
    noise = torch.Generator().manual_seed(0)
    x0 = torch.randn(400_000, generator=noise)
    x1 = mu + variance**0.5 * torch.randn(400_000, generator=noise)
    x_t, u = (1 - t) * x0 + t * x1, x1 - x0
    slope = ((x_t - x_t.mean()) * (u - u.mean())).mean() / x_t.var()
    for x in (-1.0, 0.0, 2.0):
        expected = u.mean() + slope * (x - x_t.mean())
        found = gaussian_velocity(torch.tensor(x), torch.tensor(mu), torch.tensor(t), variance)
        assert found.item() == pytest.approx(expected.item(), abs=0.02)


def test_with_a_prior_an_untrained_flow_starts_near_mu():
    flow = small_flow(prior=True)
    flow.decoder.variance = 1e-4
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.weight)
    flow.decoder.guidance = 0.0
    tokens, prompt, prompt_mel, speaker = small_input(12)
    mel = flow.inference(tokens, prompt, prompt_mel, speaker, n_timesteps=40)
    mu = flow.encode(torch.cat([prompt, tokens], 1), speaker)[:, prompt.shape[1] * 2 :].transpose(1, 2)
    assert ((mel + 5.0) / 2.0 - mu).abs().mean() < 0.05


def test_the_prior_knows_the_voice():
    flow = small_flow(prior=True)
    tokens, _, _, speaker = small_input(12)
    assert (flow.encode(tokens, speaker) - flow.encode(tokens, -speaker)).abs().max() > 1e-3
    assert torch.equal(small_flow().encode(tokens, speaker), small_flow().encode(tokens, -speaker))


@pytest.mark.parametrize("prior", [False, True])
def test_flow_learns_one_batch(prior):
    flow = small_flow(prior=prior).train()
    tokens, _, _, speaker = small_input(20, batch=2)
    mel = (
        torch.randn(30, 8, generator=torch.Generator().manual_seed(5))[tokens]
        .repeat_interleave(2, 1)
        .transpose(1, 2)
        * 2
        - 5
    )
    optimizer = torch.optim.AdamW(flow.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        same_draws = torch.Generator().manual_seed(0)
        loss = flow.loss(tokens, torch.tensor([20, 20]), mel, speaker, generator=same_draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


class Synchronisations(TorchDispatchMode):
    """Counts reads of a tensor's value by Python: each would stop a GPU and break a captured graph."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("streaming", [False, True])
@torch.no_grad()
def test_the_euler_steps_never_wait_for_a_value_on_the_device(streaming):
    flow = small_flow(prior=True)
    x, speaker = torch.randn(1, 20, 8), torch.randn(1, 8)
    with Synchronisations() as seen:
        flow.decoder.solve(x, x, speaker, x, 3, None, streaming)
        assert seen.count == 0
        float(x[0, 0, 0])
    assert seen.count == 1, "the counter counts"


@torch.no_grad()
def test_the_unet_is_one_graph():
    estimator = small_flow().decoder.estimator
    x, speaker, t = torch.randn(2, 20, 8), torch.randn(2, 8), torch.rand(2)
    step = torch.compile(estimator, fullgraph=True, backend="eager")
    for streaming in (False, True):
        given = (x, x, t, speaker, x, None, streaming)
        torch.testing.assert_close(step(*given), estimator(*given))
