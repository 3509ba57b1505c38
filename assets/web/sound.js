// Sound out: plays int16 PCM that arrives in numbered chunks, with as little delay as the arrival allows.
// Knows nothing of Gradio or of what a player looks like. Everything hangs on window.parley and window.parleyPlayers.
(() => {
  if (window.parley) return;

  const MIN_LEAD = 0.04;        // s of sound in hand before the first chunk is started
  const MAX_LEAD = 0.8;
  const CONTEXT_RATES = [8000, 96000];
  const contexts = new Map();   // rate → AudioContext: a page has few, however many players it has
  const players = new Set();

  function contextFor(rate) {
    if (!contexts.has(rate)) {
      let context;
      try {
        if (rate < CONTEXT_RATES[0] || rate > CONTEXT_RATES[1]) throw new RangeError(rate);
        context = new AudioContext({sampleRate: rate, latencyHint: 'interactive'});
      } catch (refused) {
        context = new AudioContext({latencyHint: 'interactive'});
      }
      contexts.set(rate, context);
      context.addEventListener('statechange', () => players.forEach(player => player.changed()));
    }
    return contexts.get(rate);
  }

  // Browsers start sound only after a gesture: any touch or key of the page counts.
  function resumeAll() {
    contexts.forEach(context => { if (context.state === 'suspended') context.resume(); });
  }
  for (const gesture of ['pointerdown', 'keydown']) document.addEventListener(gesture, resumeAll, {capture: true, passive: true});

  // Pauses what plays beside the players: recordings of finished answers, samples of voices.
  function hush() {
    document.querySelectorAll('audio').forEach(audio => audio.pause());
    document.dispatchEvent(new Event('parley-silence'));
  }

  // Linear interpolation that carries its phase and last sample over chunk borders, so that borders make no click.
  class Resampler {
    constructor(from, to) { this.step = from / to; this.at = 0; this.last = 0; }
    push(samples) {
      const length = samples.length, out = [];
      let at = this.at;                                   // position in `samples`; -1…0 lies before its first sample
      for (; at < length - 1; at += this.step) {
        const k = Math.floor(at), part = at - k;
        const left = k < 0 ? this.last : samples[k];
        out.push(left + part * (samples[k + 1] - left));
      }
      this.at = at - length;
      if (length) this.last = samples[length - 1];
      return Float32Array.from(out);
    }
  }

  function decode(text) {
    const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
    const view = new DataView(bytes.buffer), samples = new Float32Array(bytes.length >> 1);
    for (let k = 0; k < samples.length; k++) samples[k] = view.getInt16(2 * k, true) / 32768;
    return samples;
  }

  class PcmPlayer {
    constructor(onchange) {
      this.onchange = onchange;
      this.volume = Number(localStorage.getItem('parley_volume') ?? 1);
      this.muted = false;
      this.ducked = false;
      this.lead = MIN_LEAD;
      this.silenced = new Set();   // streams that must not sound again, whatever still arrives
      this.reset(null);
      players.add(this);
    }

    // A value from the server: {stream, rate, chunks: [[seq, base64], …], end, sent, flush}.
    accept(value) {
      if (!value) return;
      if (value.flush) this.silence(value.flush);
      if (!value.stream || this.silenced.has(value.stream)) return;
      if (value.stream !== this.stream) {
        this.stop();
        players.forEach(other => { if (other !== this) other.silence(); });   // one voice at a time in a page
        hush();
        this.reset(value.stream);
      }
      for (const [seq, pcm] of value.chunks ?? []) {
        if (seq <= this.stats.seq) continue;             // sent again, in case an update was skipped
        this.stats.gaps += seq - this.stats.seq - 1;
        this.stats.seq = seq;
        this.play(decode(pcm), value.rate, value.sent);
      }
      if (value.end) this.ended = true;
      this.changed();
    }

    reset(stream) {
      this.stream = stream;
      this.ended = false;
      this.context = null;
      this.sources = new Set();
      this.next = 0;                                     // context time at which the next chunk starts
      this.lead = Math.max(MIN_LEAD, this.lead / 2);     // an earlier underrun is half forgotten
      this.stats = {stream, seq: 0, chunks: 0, samples: 0, gaps: 0, underruns: 0, rate: 0, resampled: false,
                    firstArrival: null, firstSound: null, serverToSound: null, silencedAt: null};
    }

    play(samples, rate, sent) {
      if (!this.context) {
        this.context = contextFor(rate);
        this.gain = this.context.createGain();
        this.analyser = this.context.createAnalyser();
        this.analyser.fftSize = 512;
        this.gain.gain.value = this.loudness();
        this.gain.connect(this.analyser).connect(this.context.destination);
        this.resampler = this.context.sampleRate === rate ? null : new Resampler(rate, this.context.sampleRate);
        this.stats.rate = rate;
        this.stats.resampled = Boolean(this.resampler);
        this.stats.firstArrival = Date.now();
        if (this.context.state === 'suspended') this.context.resume();
      }
      this.stats.chunks += 1;
      this.stats.samples += samples.length;
      const ready = this.resampler ? this.resampler.push(samples) : samples;
      if (!ready.length) return;
      const context = this.context, now = context.currentTime;
      const buffer = context.createBuffer(1, ready.length, context.sampleRate);
      buffer.copyToChannel(ready, 0);
      if (this.next < now) {
        if (this.next) {
          this.stats.underruns += 1;
          this.lead = Math.min(MAX_LEAD, 2 * this.lead + 0.04);
        }
        this.next = Math.ceil((now + this.lead) * context.sampleRate) / context.sampleRate;
      }
      const source = context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.gain);
      source.onended = () => { this.sources.delete(source); if (!this.sources.size) this.changed(); };
      source.start(this.next);
      this.sources.add(source);
      if (this.stats.firstSound === null) {
        const delay = this.next - now + (context.outputLatency || context.baseLatency || 0);
        this.stats.firstSound = Date.now() + 1000 * delay;
        if (sent) this.stats.serverToSound = this.stats.firstSound - sent;
      }
      this.next += buffer.duration;
    }

    // Silence now; what still arrives of this stream (or of `stream`) is dropped.
    silence(stream = this.stream) {
      if (stream) this.silenced.add(stream);
      if (stream === this.stream) this.stop();
      this.changed();
    }

    stop() {
      if (!this.context || !this.sources.size) return;
      const now = this.context.currentTime, sources = this.sources;
      this.gain.gain.cancelScheduledValues(now);
      this.gain.gain.setTargetAtTime(0, now, 0.006);     // a short fade: no click
      sources.forEach(source => { source.onended = null; source.stop(now + 0.04); });
      this.sources = new Set();
      this.stats.silencedAt = Date.now() + 40;
    }

    loudness() { return this.muted || this.ducked ? 0 : this.volume; }

    // Change volume, mute or duck without a click; `seconds` is the time constant.
    tune(change, seconds = 0.02) {
      Object.assign(this, change);
      if ('volume' in change) localStorage.setItem('parley_volume', this.volume);
      if (this.context) this.gain.gain.setTargetAtTime(this.loudness(), this.context.currentTime, seconds);
      this.changed();
    }

    get state() {
      if (!this.sources.size) return this.stream && !this.ended && !this.silenced.has(this.stream) ? 'waiting' : 'idle';
      return this.context.state === 'suspended' ? 'blocked' : 'playing';
    }

    // 0…1, how loud it sounds now.
    level() {
      if (this.state !== 'playing') return 0;
      const samples = new Float32Array(this.analyser.fftSize);
      this.analyser.getFloatTimeDomainData(samples);
      let sum = 0;
      for (const sample of samples) sum += sample * sample;
      return Math.min(1, 3 * Math.sqrt(sum / samples.length));
    }

    changed() { this.onchange?.(this.state); }
    close() { this.silence(); players.delete(this); }
  }

  const language = () => document.documentElement.dataset.language === 'zh' ? 'zh' : 'en';
  const calm = matchMedia('(prefers-reduced-motion: reduce)');

  // Draws `count` bars that follow level() on a canvas while active() says so; the canvas takes its CSS colour.
  function bars(canvas, level, active) {
    const history = new Array(32).fill(0);
    let timer = null, pen = null, colour = '';
    function draw() {
      timer = null;
      if (!canvas.isConnected) return;
      history.push(level());
      history.shift();
      const step = canvas.width / history.length;
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.fillStyle = colour;
      history.forEach((value, k) => {
        const bar = Math.max(2 * devicePixelRatio, value * canvas.height);
        pen.beginPath();
        pen.roundRect(k * step + step * 0.2, (canvas.height - bar) / 2, step * 0.6, bar, step * 0.3);
        pen.fill();
      });
      if (active() || history.some(value => value > 0.01)) timer = setTimeout(draw, calm.matches ? 250 : 60);
    }
    // Size and colour are asked once a run: asking at every frame would lay out the whole page each time.
    return () => {
      if (timer !== null) return;
      canvas.width = canvas.clientWidth * devicePixelRatio;
      canvas.height = canvas.clientHeight * devicePixelRatio;
      pen = canvas.getContext('2d');
      colour = getComputedStyle(canvas).color;
      draw();
    };
  }
  window.parley = {PcmPlayer, Resampler, bars, language};
  window.parleyPlayers = {
    players,
    silence: () => { players.forEach(player => player.silence()); hush(); },
    stats: () => [...players].map(player => ({...player.stats, state: player.state, lead: player.lead})),
  };
})();
