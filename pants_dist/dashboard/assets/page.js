// The wheel over a slice moves its slider, which asks for the next one.
document.addEventListener("wheel", (event) => {
  const picture = event.target.closest && event.target.closest("img.slice");
  if (!picture) return;
  event.preventDefault();
  const slider = picture.id.replace("slice-", "at-");
  const thumb = document.querySelector(`#${slider} [role=slider]`);
  const least = Number(thumb.getAttribute("aria-valuemin")), most = Number(thumb.getAttribute("aria-valuemax"));
  const wanted = Number(thumb.getAttribute("aria-valuenow")) + (event.deltaY > 0 ? -1 : 1);
  window.dash_clientside.set_props(slider, { value: Math.min(most, Math.max(least, wanted)) });
}, { passive: false });

// In the table of runs: whether a run is shown, in its color.
window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {};
window.dashAgGridComponentFunctions.Tick = ({ value }) =>
  window.React.createElement("i", { className: value ? "tick on" : "tick", style: { background: value || "none" } });

// In tables: whether a center was seen in training. React writes the value as text.
window.dashAgGridComponentFunctions.Badge = ({ value }) =>
  value ? window.React.createElement("span", { className: `badge ${value}` }, value) : null;
