// The player of an answer card: what window.parley.PcmPlayer plays, with level bars, mute and volume.
window.parley.player = (element, props, watch) => {
  const {PcmPlayer, bars, language} = window.parley;
  const words = props.words[language()];
  const part = name => element.querySelector(`[data-part=${name}]`);
  const root = part('player'), mute = part('mute'), volume = part('volume'), hint = part('hint');
  const player = new PcmPlayer(show);
  const animate = bars(part('bars'), () => player.level(), () => player.state === 'playing');
  volume.value = player.volume;
  volume.setAttribute('aria-label', words.volume);
  mute.addEventListener('click', () => player.tune({muted: !player.muted}));
  volume.addEventListener('input', () => player.tune({volume: Number(volume.value), muted: false}));

  function show(state) {
    root.dataset.state = state;
    hint.hidden = state !== 'blocked';
    mute.setAttribute('aria-pressed', String(player.muted));
    mute.setAttribute('aria-label', player.muted ? words.unmute : words.mute);
    if (state === 'playing') animate();
  }

  watch('value', () => player.accept(props.value));
  show('idle');
  animate();
};
